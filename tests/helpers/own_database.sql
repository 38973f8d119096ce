-- What a database of one's own may hold besides plain tables.
CREATE TABLE notes(id INTEGER PRIMARY KEY, meta TEXT, body TEXT, day TEXT DEFAULT CURRENT_DATE,
  kind AS (json_extract(meta, '$.kind')), month AS (date(day, '-1 month')));
INSERT INTO notes(meta, body, day)
  VALUES ('{"kind": "call"}', 'it came back', '2026-03-01');
CREATE VIEW kinds AS SELECT id, meta ->> 'kind' AS kind, date(day) AS day FROM notes;
CREATE VIEW lucky AS SELECT random() AS x;
CREATE VIEW "old ""view" AS SELECT gone FROM notes;
CREATE VIEW today AS SELECT id FROM notes WHERE day > date('now');
CREATE VIRTUAL TABLE words USING fts5(body);
INSERT INTO words VALUES ('it came back');
CREATE VIRTUAL TABLE older USING fts4(body);
INSERT INTO older SELECT * FROM words;
CREATE VIRTUAL TABLE boxes USING rtree(id, a, b);
INSERT INTO boxes VALUES (1, 2, 3);
