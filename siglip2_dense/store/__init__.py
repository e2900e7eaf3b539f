"""Features on disk: what they are of (``key``), how they lie in files (``packing``, ``shard``, ``store``, ``folder``),
and what reads them to train and evaluate (``reader``, ``loader``).
"""
