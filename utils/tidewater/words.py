"""Words of Tidewater's users, for `redaction` and `overlap`, which know any product's.

Both were fitted to the questions of data/traces.jsonl: read some hundred of your own
before you write yours.
"""
NOT_NAMES = ()
