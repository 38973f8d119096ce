"""The course's own machinery: modes, results, costly runs, exercises, figures.

Nothing here is for copying.
"""

import warnings

from utils.course.run import ROOT, SHIPPED, Run, read_rows, start

__all__ = ["ROOT", "SHIPPED", "Run", "read_rows", "start"]

# Progress bars are text where Jupyter has no widgets, and need not say so in each
# notebook. Here, for it must come before the libraries that draw them.
warnings.filterwarnings("ignore", "IProgress not found")
