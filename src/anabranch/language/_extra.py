"""One sentence for a missing dependency."""

TRANSFORMERS_MISSING = (
    "this part needs torch and transformers: install anabranch[language]; for a machine without a GPU install torch's "
    "CPU-only build first (its index is named by the install selector on pytorch.org)"
)
