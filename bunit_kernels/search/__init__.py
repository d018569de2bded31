"""``python -m bunit_kernels.search``: which units a backbone's blocks take, under a budget."""

from .cli import main
from .search import Search, search
from .settings import CANDIDATES, SearchSettings

__all__ = ["CANDIDATES", "Search", "SearchSettings", "main", "search"]
