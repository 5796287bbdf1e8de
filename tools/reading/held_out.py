"""Which data rows are held out of training. Training, check-up and scoring agree on it here."""

SHARE = 0.02            # where `eval_share` is null


def held_every(share=None, rows=None):
    """Held out are the data rows whose number from 0 this divides; 0 = none.

    share: what was asked for. None: SHARE, but nothing of fewer than 2 / SHARE usable `rows` (None = many): of a small
    file every row counts, and a score on one row says nothing.
    """
    if share is None:
        return 0 if rows is not None and rows * SHARE < 2 else round(1 / SHARE)
    return max(2, round(1 / share)) if share else 0


def split_text(training, held, skipped=0):
    """The Chinese words with which every training announces its split."""
    left = f"，跳过 {skipped:,} 行没有可学的" if skipped else ""
    return f"训练 {training:,} 行，留出 {held:,} 行{left}"
