"""The Hugging Face hub through its own client library: files of a repository, and which repositories share heads."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from siglip2_dense.errors import UserError, first_line

HUB = "hub:"


class Repository(NamedTuple):
    """A repository of models."""

    name: str  # "owner/name"
    revision: str | None = None  # a branch, a tag or a commit

    def __str__(self) -> str:
        return HUB + self.name + (f"@{self.revision}" if self.revision else "")


def repository(target: str) -> Repository:
    """Of "hub:owner/name" or "hub:owner/name@revision". Raises UserError for anything else."""
    name, _, revision = target.removeprefix(HUB).partition("@")
    if name.count("/") != 1 or not all(name.split("/")):
        raise UserError(f"{target}: a head on the hub is {HUB}OWNER/NAME, or {HUB}OWNER/NAME@REVISION.")
    return Repository(name, revision or None)


def fetch(place: Repository, name: str) -> Path:
    """A file of a repository, in the client's cache."""
    from huggingface_hub import HfApi

    with _told(place, f"{name} could not be fetched"):
        return Path(HfApi().hf_hub_download(place.name, name, revision=place.revision))


def has(place: Repository, name: str) -> bool:
    """Whether there is such a repository with such a file, as far as one may see."""
    from huggingface_hub import HfApi

    with _told(place, "it could not be looked at"):
        return HfApi().file_exists(place.name, name)


def upload(place: Repository, folder: Path, private: bool, message: str) -> None:
    """Put the files of a folder there, in one commit; the repository is made where there is none."""
    from huggingface_hub import HfApi

    if place.revision:
        raise UserError(f"{place}: push to {HUB}{place.name}; what a commit is called is known only afterwards.")
    api = HfApi()
    with _told(place, "the head could not be pushed"):
        api.create_repo(place.name, private=private, exist_ok=True)
        api.upload_folder(repo_id=place.name, folder_path=folder, commit_message=message)


def models(name: str, tag: str) -> list[tuple[Repository, dict]]:
    """Those of an owner with a tag, or all of a collection ("owner/slug"), each with the facts that its card has."""
    from huggingface_hub import HfApi

    api = HfApi()
    with _told(HUB + name, "the heads could not be listed"):
        if "/" in name:
            items = api.get_collection(name).items
            found = [api.model_info(item.item_id) for item in items if item.item_type == "model"]
        else:
            found = list(api.list_models(author=name, filter=tag, cardData=True))
    return [(Repository(model.id), model.card_data.to_dict() if model.card_data else {}) for model in found]


@contextmanager
def _told(place: Repository | str, what: str) -> Iterator[None]:
    """Whatever the client raises as a sentence."""
    from huggingface_hub import errors

    try:
        yield
    except errors.LocalTokenNotFoundError as error:
        raise UserError(f"{place}: {what}: no token is set; run `hf auth login`, or set HF_TOKEN.") from error
    except errors.GatedRepoError as error:
        raise UserError(f"{place}: {what}: its owner lets in only who has asked; ask on its page.") from error
    except errors.RepositoryNotFoundError as error:
        raise UserError(
            f"{place}: {what}: there is no such repository, or it is private and no token that may see it is set "
            "(`hf auth login`, or HF_TOKEN)."
        ) from error
    except errors.RevisionNotFoundError as error:
        raise UserError(f"{place}: {what}: the repository has no such revision; look at its page.") from error
    except (errors.OfflineModeIsEnabled, errors.LocalEntryNotFoundError) as error:
        raise UserError(_unreached(place, what, error)) from error
    except errors.EntryNotFoundError as error:
        raise UserError(f"{place}: {what}: it is not there; a shared head is what `heads push` makes.") from error
    except errors.HFValidationError as error:
        raise UserError(f"{place}: {what}: the hub takes no such name ({first_line(error)}).") from error
    except errors.HfHubHTTPError as error:
        if getattr(error.response, "status_code", None) in (401, 403):
            raise UserError(
                f"{place}: {what}: no token is set that may do that; run `hf auth login` with one that may write."
            ) from error
        raise UserError(f"{place}: {what}: the hub answers {first_line(error)}; try again later.") from error
    except Exception as error:  # of the transport, which is another in other versions of the client
        raise UserError(_unreached(place, what, error)) from error


def _unreached(place: Repository | str, what: str, error: Exception) -> str:
    return f"{place}: {what}: the hub cannot be reached ({first_line(error)}); try where there is a network."
