"""The course's own machinery: modes, results, costly runs, exercises, figures.

Nothing here is for copying.
"""

from utils.course.run import ROOT, SHIPPED, Run, read_rows, start

__all__ = ["ROOT", "SHIPPED", "Run", "read_rows", "start"]
