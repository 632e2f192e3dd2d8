"""The token that says to the Hugging Face Hub who asks. It is given to the Hub's client only."""

import re

from stitch.errors import StitchError


def access_token(given: str | None = None) -> str | None:
    """`given`, else the token that the client finds in the environment or in its own files."""
    from huggingface_hub import get_token

    try:
        token = (get_token() if given is None else given) or None
    except Exception as error:
        raise StitchError(f"the Hub token cannot be read ({type(error).__name__}): run `hf auth login`.") from None
    if token and not re.fullmatch(r"[!-~]+", token):  # the HTTP client would quote the token in its error
        raise StitchError("the Hub token holds spaces or other characters that no token has: copy it again.")
    return token
