"""What models are called in titles: by their name and how wide they are, since an architecture says little about either."""

WIDTHS = {"demo:gpt2": 160, "demo:llama": 192, "demo:induction": 128, "smollm2": 576, "gemma3": 640}


def wide(name: str) -> str:
    """Such as `demo:gpt2 (width 160)`."""
    return f"{name} (width {WIDTHS[name]})" if name in WIDTHS else name
