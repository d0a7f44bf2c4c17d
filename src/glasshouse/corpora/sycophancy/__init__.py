"""Items of the four sycophancy tests, generated or released, and the quiz world of the organisms."""

from glasshouse.corpora.sycophancy.generate import DOMAINS, generate_items
from glasshouse.corpora.sycophancy.items import ARMS, TASKS, Item, items_hash
from glasshouse.corpora.sycophancy.released import load_released

__all__ = ["ARMS", "DOMAINS", "TASKS", "Item", "generate_items", "items_hash", "load_released"]
