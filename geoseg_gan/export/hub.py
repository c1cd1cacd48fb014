"""The Hugging Face Hub."""

from pathlib import Path

from geoseg_gan.utils.errors import UserError, install


def push(folder: Path, name: str) -> str:
    """Sends a folder to a repository of models; a new one is private.

    Args:
        folder: What to send.
        name: The repository, as in "user/name".

    Returns:
        Its address.

    Raises:
        UserError: If the client is not installed, or the Hub cannot be reached or refuses.
    """
    try:
        from huggingface_hub import HfApi
    except ImportError:
        raise UserError(
            f"push needs the Hub's client, which is not installed: {install('hub')}."
        ) from None
    api = HfApi()
    try:
        address = str(api.create_repo(name, private=True, exist_ok=True))
        api.upload_folder(repo_id=name, folder_path=folder, commit_message="Export of Geoseg-GAN")
    except Exception as error:  # of the client, of what it speaks HTTP with, of the system
        reason = " ".join(str(error).split())[:300]
        raise UserError(
            f"push={name} has failed ({reason}). Log in with `hf auth login`, see whether you may "
            f"write there, and call again: {folder} is complete, and is sent as it is."
        ) from error
    return address
