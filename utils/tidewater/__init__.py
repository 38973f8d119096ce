"""Tidewater, the product that the course improves. Swap this folder for yours."""

from utils.tidewater.data import DATA as DATA
from utils.tidewater.data import ONLY_IN as ONLY_IN
from utils.tidewater.data import PROMPTS as PROMPTS
from utils.tidewater.data import build_twin_c as build_twin_c
from utils.tidewater.data import frozen_eval as frozen_eval
from utils.tidewater.data import load_cases as load_cases
from utils.tidewater.data import load_glossary as load_glossary
from utils.tidewater.data import load_logs as load_logs
from utils.tidewater.data import load_prompt as load_prompt
from utils.tidewater.data import read_jsonl as read_jsonl
from utils.tidewater.data import recorded_model as recorded_model
from utils.tidewater.product import Tidewater as Tidewater
from utils.tidewater.sql_tool import WAREHOUSES as WAREHOUSES
from utils.tidewater.sql_tool import SqlTool as SqlTool
from utils.tidewater.sql_tool import extract_sql as extract_sql
from utils.tidewater.sql_tool import grade as grade
from utils.tidewater.sql_tool import open_pool as open_pool
from utils.tidewater.sql_tool import rows_of as rows_of
