"""Tidewater, the product that the course improves. Swap this folder for yours."""

from utils.tidewater.data import (
    DATA,
    ONLY_IN,
    PROMPTS,
    WAREHOUSES,
    SqlTool,
    extract_sql,
    frozen_eval,
    grade,
    load_cases,
    load_glossary,
    load_logs,
    load_prompt,
    open_pool,
    read_jsonl,
    recorded_model,
)

__all__ = [
    "DATA",
    "ONLY_IN",
    "PROMPTS",
    "WAREHOUSES",
    "SqlTool",
    "extract_sql",
    "frozen_eval",
    "grade",
    "load_cases",
    "load_glossary",
    "load_logs",
    "load_prompt",
    "open_pool",
    "read_jsonl",
    "recorded_model",
]
