"""Open a setting's store without knowing where its files lie."""

from dataclasses import replace
from pathlib import Path

from datamodels.train.config import Setting, alpha_of, from_dict, read_setting
from datamodels.train.errors import UserError
from datamodels.train.store.base_store import BaseStore
from datamodels.train.store.layout import Layout
from datamodels.train.store.manifest import read_manifest
from datamodels.train.store.store import open_store
from datamodels.train.values import expanded


def open(
    where: str | Path,
    dataset: str | None = None,
    alpha: float | None = None,
    tag: str | None = None,
    *,
    root: str | Path | None = None,
    eval_models: int | None = None,
    out: str | Path | None = None,
) -> BaseStore:
    """Open a setting's rows for reading; its arrays are maps that cannot be written.

    where: the root of a store, with `dataset` and `alpha` or `tag` where it holds several settings; or a config file,
    whose setting then is that of the store under `root`, by default runs/<name of the file>. eval_models: number of
    rows of published files, the last ones, that are for evaluation; by default the config's, or 10,000. out: folder for
    datamodels where the root is read-only, as --out of the command; what it lacks is read from the root.

    Finishes what an interrupted command left half done, if the store can be written. Raises UserError if there is no
    such setting, or a different one.
    """
    where = expanded(where, "where")
    if alpha is not None and tag is not None:
        raise UserError(f"alpha is {alpha} and tag {tag!r}, expected one of them: a setting with a tag has no alpha")
    tag = tag if alpha is None else f"{100 * alpha:g}pct"
    if where.is_file() or where.suffix in (".yaml", ".yml"):
        setting = read_setting(where)
        if (dataset or setting.dataset, tag or setting.file_tag) != (setting.dataset, setting.file_tag):
            raise UserError(f"{where} is of {setting.dataset}, {setting.described}, expected no other with it")
        layout = Layout(expanded(root or f"runs/{where.stem}", "root"), setting.dataset, setting.file_tag)
    elif root is not None:
        raise UserError(f"{where} is not a config file, expected one since root is given")
    else:
        layout = _only(where, dataset, tag)
        if not layout.manifest.exists():
            setting = published_setting(layout)
        else:
            setting = from_dict(read_manifest(layout.manifest).config)
            if eval_models not in (None, setting.eval_models):
                raise UserError(f"eval_models is {eval_models}, but {layout.manifest} says {setting.eval_models}")
    return open_store(layout, setting if eval_models is None else replace(setting, eval_models=eval_models), out=out)


def published_setting(layout: Layout) -> Setting:
    """Return what is known of the setting of published files. Raises UserError where their tag is no percentage."""
    try:
        return Setting(dataset=layout.dataset, alpha=alpha_of(layout.tag.removesuffix("pct")))
    except ArithmeticError:
        raise UserError(f"{layout.manifest} does not exist: restore it from a copy") from None


def _only(root: Path, dataset: str | None, tag: str | None) -> Layout:
    """Return the one setting of a root that has this name and tag, if any are given. Raises UserError."""
    paths = {path.with_suffix("") for path in root.glob("*/data/train_masks_*.np[yz]")}
    layouts = [Layout(root, path.parts[-3], path.name.removeprefix("train_masks_")) for path in sorted(paths)]
    found = [layout for layout in layouts if dataset in (None, layout.dataset) and tag in (None, layout.tag)]
    if len(found) == 1:
        return found[0]
    wanted = " ".join(filter(None, (dataset, tag)))
    if not found:
        raise UserError(f"{root} holds no setting{wanted and f' {wanted}'}: expected DATASET/data/train_masks_*.npy")
    names = ", ".join(f"{layout.dataset} {layout.tag}" for layout in found)
    raise UserError(f"{root} holds {len(found)} settings ({names}): say which with dataset and alpha, or tag")
