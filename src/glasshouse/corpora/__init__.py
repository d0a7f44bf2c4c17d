"""Text in and out: records from files, token batches, worlds of made-up facts, suites of questions."""

from glasshouse.corpora.records import Records, read_records, write_records
from glasshouse.corpora.rows import Record, TokenBatch, TokenRow, Turn

__all__ = ["Record", "Records", "TokenBatch", "TokenRow", "Turn", "read_records", "write_records"]
