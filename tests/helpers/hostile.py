"""Queries that mean harm, or might as well. None of them may return a row.

HOSTILE holds (name, SQL, the errors of utils.evals.sandbox.ERRORS that may come): more
than one where versions of SQLite differ, or it is a race which wall is hit first. A
short query is its own name.
"""

COUNTER = "WITH RECURSIVE r(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM r) "
DOUBLE = "WITH RECURSIVE r(x) AS (SELECT '1' UNION ALL SELECT {} FROM r) "
BIG = "printf('%.*c', 900000, 'a')"  # 900,000 times the letter a
SIX = "order_lines a, order_lines b, order_lines c, order_lines d, tickets e, tickets f"


def nested(opening: str, middle: str, closing: str, times: int) -> str:
    return opening * times + middle + closing * times


WRITES = [  # denied
    "INSERT INTO customers(customer) VALUES ('x')",
    "UPDATE customers SET is_test = 1",
    "DELETE FROM order_lines",
    "REPLACE INTO customers(customer_id) VALUES (1)",
    "INSERT INTO customers(customer_id) VALUES (1) ON CONFLICT DO NOTHING",
    "UPDATE customers SET is_test = 1 RETURNING *",
    "WITH x AS (SELECT 1) DELETE FROM customers",
    "DROP TABLE customers", "DROP TABLE customers; SELECT 1",
    "CREATE TABLE x AS SELECT * FROM customers",
    "CREATE TEMP VIEW x AS SELECT 1",
    "CREATE TRIGGER t AFTER INSERT ON customers BEGIN SELECT 1; END",
    "CREATE INDEX i ON customers(email)",
    "CREATE VIRTUAL TABLE x USING fts5(a)",
    "CREATE VIRTUAL TABLE x USING csv(filename='/etc/passwd')",
    "ALTER TABLE customers RENAME TO c", "ALTER TABLE customers ADD COLUMN x",
    "ATTACH '/etc/passwd' AS p",
    "ATTACH DATABASE '/tmp/hostile.sqlite' AS p",
    "VACUUM INTO '/tmp/hostile.sqlite'",
    ";/* */ -- x\n\ufeffVaCuUm main INTO '/tmp/hostile.sqlite'",
    "/* x */ explain query plan SELECT * FROM customers",
    "VACUUM", "REINDEX", "ANALYZE", "EXPLAIN SELECT 1",
    "DETACH main", "ATTACH ':memory:' AS p",
    "BEGIN EXCLUSIVE", "COMMIT", "ROLLBACK", "SAVEPOINT x", "RELEASE x",
    "PRAGMA writable_schema = 1", "PRAGMA journal_mode = wal",
    "PRAGMA hard_heap_limit = 0", "PRAGMA temp_store_directory = '/tmp'",
    "PRAGMA table_info(customers)", "CREATE TABLE x(a)", "CREATE TEMP TABLE x(a)",
]  # fmt: skip
PEEKS = [  # denied
    "SELECT load_extension('/tmp/evil.so')",
    "SELECT Load_Extension('libc.so.6', 'system')",
    "SELECT 1 WHERE EXISTS (SELECT load_extension('x'))",
    "SELECT * FROM customers ORDER BY random()",
    f"SELECT 1 FROM {SIX} ORDER BY random()",
    "SELECT sum(random()) OVER () FROM customers",
    "WITH x(a) AS (SELECT randomblob(9)) SELECT count(a) FROM x",
    "SELECT randomblob(1000000000)", "SELECT zeroblob(1000000000)",
    "SELECT length(hex(zeroblob(900000)))", "SELECT fts3_tokenizer('simple')",
    "SELECT fts3_tokenizer('x', x'4141414141414141')",
    "SELECT sqlite_source_id()", "SELECT sqlite_version()",
    "SELECT sqlite_compileoption_get(1)", "SELECT sqlite_log(1, 'x')",
    "SELECT total_changes(), last_insert_rowid()",
    "SELECT * FROM json_each('[1, 2]')", "PRAGMA data_version",
    "SELECT count(*) FROM customers, json_tree('[[1]]')",
    "SELECT * FROM pragma_table_info('customers')",
    "SELECT file FROM pragma_database_list",
    "SELECT * FROM dbstat", "SELECT sql FROM sqlite_stmt",
    "SELECT * FROM temp.sqlite_master",
]  # fmt: skip
CLOCKS = [  # denied, where the clock is not frozen
    "SELECT date()", "SELECT time()", "SELECT datetime()", "SELECT julianday()",
    "SELECT unixepoch()", "SELECT strftime('%Y')", "SELECT CURRENT_DATE",
    "SELECT CURRENT_TIME", "SELECT current_timestamp", "SELECT DATE( 'NOW', '-1 day')",
    "SELECT strftime('%Y', 'now')", "SELECT 1 WHERE date('now', 'utc') > '2026'",
    "SELECT date(/* 'x' */ 'nOw' -- x\n)", 'SELECT date("now")', "SELECT date(' now ')",
    "SELECT date('n' || 'ow')", "SELECT date(char(110, 111, 119))",
    "SELECT date(replace('mow', 'm', 'n'))", "SELECT date(x'6e6f77')",
    "SELECT date('now' || char(0) || '!')", "SELECT unixepoch('subsec')",
    "SELECT max(date(x)) FROM (SELECT 'now' AS x UNION SELECT '2026-01-01')",
    "WITH w(x) AS (VALUES (lower('NOW'))) SELECT (SELECT date(x) FROM w)",
    "SELECT count(*) FROM tickets GROUP BY opened_date < date('now')",
]  # fmt: skip
UNKNOWN = [  # sql_error; denied where SQLite has the thing
    "SELECT writefile('/tmp/hostile', 'x')", "SELECT readfile('/etc/passwd')",
    "SELECT edit('x', 'vi')", "SELECT eval('DROP TABLE customers')",
    "SELECT * FROM fsdir('/')", "SELECT * FROM generate_series(1, 1000000000)",
    "SELECT * FROM sqlite_stat1", "SELECT * FROM twin.customers",
    "UPDATE sqlite_schema SET sql = ''", "DELETE FROM sqlite_master",
    "SELECT password FROM customers", "SELECT email REGEXP '(a+)+$' FROM customers",
    "SELECT * FROM \u0441ustomers",  # a Cyrillic letter
    "SELECT * FROM \U0001f600",  # a surrogate pair in JSON
    "SELECT ?", "SELECT * FROM customers WHERE email = :email", "SELECT ?250000",
    "SELECT abs(-9223372036854775808)", "SELECT json('[1,')",
    "WITH x AS (SELECT * FROM x) SELECT * FROM x",
    "SELECT timediff('now', '2026-01-01')",
]  # fmt: skip
TOO_MUCH = {  # the same, of what is long or deep
    "deep JSON": f"SELECT json('{'[' * 40_000}')",
    "1,000 columns": f"SELECT {','.join('1' * 1_000)}",
    "5,000 UNION ALLs": " UNION ALL ".join(["SELECT 1"] * 5_000),
    "65 tables": f"SELECT 1 FROM {','.join(f'customers c{i}' for i in range(65))}",
    "2,000 arguments": f"SELECT max({','.join('1' * 2_000)})",
    "5,000 sums": f"SELECT {'+'.join('1' * 5_000)}",
    "10,000 ANDs": f"SELECT 1 WHERE {' AND '.join('1' * 10_000)}",
    "brackets": "SELECT " + nested("(", "1", ")", 40_000),
    "minus minus": "SELECT " + nested("- ", "1", "", 40_000),
    "nested CASE": "SELECT " + nested("CASE WHEN 1 THEN ", "1", " END", 3_000),
    "nested calls": "SELECT " + nested("abs(", "1", ")", 9_000),
    "nested SELECT": nested("SELECT * FROM (", "SELECT 1", ")", 3_000),
    "LIKE pattern": "SELECT 'a' LIKE printf('%.*c', 60000, '%')",
    "GLOB pattern": "SELECT 'a' GLOB printf('%.*c', 60000, '*')",
}
NOT_SQL = [  # syntax
    "I cannot answer that question.",
    "```sql\nSELECT 1\n```",
    "SELECT 'abc", "SELECT (1",
    "\0", "SELECT 1\0", "SELECT 1 --\0\nDROP TABLE customers",
    "SELECT '\ud800'", "SELECT * FROM \udfff",  # lone surrogates
    "SELECT 1".encode("utf-16-le").decode("latin-1"),
    "S\u0415LECT 1", "\uff33ELECT 1", "\u202eSELECT 1",  # look alike, right to left
    "SELECT 1 FROM\u00a0customers WHERE 1 = 1 1",  # a no-break space
    ".shell rm -rf /", "COPY customers TO PROGRAM 'sh'",
    "SELECT * FROM customers INTO OUTFILE '/tmp/hostile'",
]  # fmt: skip
BOMBS = {  # timeout, or memory
    "counting": COUNTER + "SELECT count(*) FROM r",
    "counting far": COUNTER + "SELECT sum(n) FROM (SELECT n FROM r LIMIT 1000000000)",
    "waiting": COUNTER + "SELECT n FROM r WHERE n < 0",
    "remembering": COUNTER.replace("ALL ", "") + "SELECT max(n) FROM r",
    "forking": f"{COUNTER[:-2]} UNION ALL SELECT n + 2 FROM r) SELECT sum(n) FROM r",
    "two counters": COUNTER + "SELECT count(*) FROM r a, r b",
    "cross join": f"SELECT count(*) FROM {SIX}",
    "cross join, sorted": f"SELECT 1 FROM {SIX} ORDER BY a.price * b.price LIMIT 5",
    "cross join, distinct": f"SELECT count(DISTINCT a.rowid + b.price) FROM {SIX}",
    "cross join, grouped": f"SELECT count(*) FROM {SIX} GROUP BY a.rowid, b.rowid",
    "cross join, except": f"SELECT a.rowid, b.rowid FROM {SIX} EXCEPT SELECT 1, 1",
    "60 tables": f"SELECT count(*) FROM {','.join(f'tickets t{i}' for i in range(60))}",
    "correlated": "SELECT count(*) FROM order_lines a WHERE (SELECT count(*) FROM "
    "order_lines b WHERE b.price < a.price) > (SELECT count(*) FROM order_lines c "
    "WHERE c.cost < a.cost)",
    "correlated twice": "SELECT sum((SELECT sum((SELECT count(*) FROM tickets c WHERE "
    "c.rating <> a.rating + b.rating)) FROM tickets b)) FROM tickets a",
    "window": f"SELECT sum(a.qty) OVER (ORDER BY b.price) FROM {SIX}",
    "window of texts": "SELECT count(x) FROM (SELECT group_concat(product) OVER (ROWS "
    "BETWEEN 5000 PRECEDING AND 5000 FOLLOWING EXCLUDE TIES) x FROM order_lines)",
    "doubling CTEs": "WITH t0 AS (SELECT 1 x UNION ALL SELECT 1)"
    + "".join(f", t{i} AS (SELECT 1 x FROM t{i - 1}, t{i - 1} u)" for i in range(1, 20))
    + " SELECT count(*) FROM t19",
    "long IN list": f"SELECT count(*) FROM {SIX} WHERE a.price IN "
    f"({','.join(map(str, range(15_000)))})",
    "long VALUES": f"WITH v(x) AS (VALUES {','.join(f'({i})' for i in range(9_000))}) "
    "SELECT count(*) FROM v a, v b, v c",
    "group_concat": f"SELECT length(group_concat(b.qty)) FROM {SIX} GROUP BY a.rowid",
    "padding": f"SELECT sum(length(printf('%0900000d', a.rowid))) FROM {SIX}",
    "upper": f"SELECT sum(length(upper({BIG}))) FROM {SIX}",
    "substr": f"SELECT count(substr({BIG}, a.rowid)) FROM {SIX}",
    # These few spend their time within one call, where only the kill reaches them.
    "instr": f"SELECT instr({BIG}, printf('%.*c', 450000, 'a') || 'b')",
    "replace text": f"SELECT replace({BIG}, printf('%.*c', 450000, 'a') || 'b', 'c')",
    "LIKE": f"SELECT {BIG} LIKE '%' || printf('%.*c', 900, 'a') || 'b%' FROM {SIX}",
    "GLOB": f"SELECT {BIG} GLOB '*' || printf('%.*c', 900, 'a') || 'b*' FROM {SIX}",
    "trim": f"SELECT sum(length(trim({BIG}, 'b' || a.rowid || 'a'))) FROM {SIX}",
}
BLOW_UPS = {  # too_many_bytes, or memory
    "growing": f"SELECT length(replace({BIG}, 'a', printf('%.*c', 9999, 'b')))",
    "hex of hex of hex": f"SELECT hex(hex(hex({BIG})))",
    "quote": f"SELECT length(quote(replace({BIG}, 'a', '''')))",
    "||": f"SELECT length({BIG} || {BIG})",
    "doubling text": DOUBLE.format("x || x") + "SELECT max(length(x)) FROM r",
    "doubling JSON": DOUBLE.format("json_array(json(x), json(x))") + "SELECT x FROM r",
    "group_concat, long": f"SELECT length(group_concat({BIG})) FROM customers",
    "json_group_array": f"SELECT length(json_group_array({BIG})) FROM customers",
    "strftime": f"SELECT length(strftime(replace({BIG}, 'a', '%J'), '2026-01-01'))",
    "one wide row": f"SELECT {BIG}, {BIG}, {BIG}",
    "wide rows": f"SELECT {BIG} FROM customers",
    "198 columns": f"SELECT {','.join('*' * 9)} FROM order_lines, customers LIMIT 900",
    "long names": f'WITH t AS (SELECT 1 "{"x" * 90_000}") SELECT a.*, * FROM t a, t',
}
OTHER = [
    ("two statements", "SELECT 1; SELECT 2", {"multiple_statements"}),
    ("drop, behind", "SELECT 1; DROP TABLE customers; --", {"multiple_statements"}),
    ("comment between", "SELECT 1 /* ; */ ; /* */ VACUUM", {"multiple_statements"}),
    ("nothing", "", {"empty"}),
    ("blanks", " \t\r\n", {"empty"}),
    ("semicolons", ";;;", {"empty"}),
    ("comment", "-- SELECT 1", {"empty"}),
    ("open comment", "/* SELECT 1", {"empty"}),
    ("20,000 comments", "/**/" * 20_000, {"empty"}),
    ("megabyte", f"SELECT {'1,' * 500_000}1", {"too_long"}),
    ("megabyte of blanks", " " * 1_000_000, {"too_long"}),
    ("megabyte of brackets", "SELECT " + nested("(", "1", ")", 500_000), {"too_long"}),
    ("megabyte of emoji", "\U0001f600" * 250_000, {"too_long"}),
    ("all rows", "SELECT order_id FROM order_lines", {"too_many_rows"}),
    ("counting aloud", COUNTER + "SELECT n FROM r", {"too_many_rows"}),
    ("gigabyte of printf", "SELECT abs(-9223372036854775807 - coalesce(length(printf("
     "'%.*c', 1000000000, 'a')), 9))", {"timeout", "too_many_bytes", "sql_error"}),
]  # fmt: skip
HOSTILE = [
    *[(sql, sql, {"denied"}) for sql in WRITES + PEEKS + CLOCKS],
    *[(sql, sql, {"syntax"}) for sql in NOT_SQL],
    *[(sql, sql, {"sql_error", "denied"}) for sql in UNKNOWN],
    *[(name, sql, {"sql_error", "denied"}) for name, sql in TOO_MUCH.items()],
    *[(name, sql, {"timeout", "memory"}) for name, sql in BOMBS.items()],
    *[(name, sql, {"too_many_bytes", "memory"}) for name, sql in BLOW_UPS.items()],
    *OTHER,
]
