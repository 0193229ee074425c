"""Makes the tutorial a notebook, and runs it: `python -m docs.notebook examples/tour.ipynb`."""

import re
import sys
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

PROJECT = Path(__file__).parents[1]
CONFIG = "configs/digits_50pct.yaml"
BLOCK = re.compile(r"(.*?)(?:^```(sh|python|text)\n(.*?)^```\n|\Z)", re.DOTALL | re.MULTILINE)
INSTALL = "%pip install -q datamodels-harness"


def notebook() -> NotebookNode:
    """Return docs/tutorial.md as a notebook that needs no clone: it installs the package and writes the config."""
    text = (PROJECT / "docs" / "tutorial.md").read_text("utf-8")
    text = re.sub(r"\]\((\w+)\.md", r"](../docs/\1.md", text)
    write = f'import pathlib\n\npathlib.Path("configs").mkdir(exist_ok=True)\npathlib.Path("{CONFIG}").write_text("""'
    config = (PROJECT / CONFIG).read_text("utf-8")
    first = [new_code_cell(INSTALL, metadata={"tags": ["skip-execution"]}), new_code_cell(f'{write}\\\n{config}""");')]
    cells = []
    for prose, kind, block in BLOCK.findall(text):
        if prose.strip():
            cells.append(new_markdown_cell(prose.strip()))
        if kind in ("sh", "python"):
            cells.append(new_code_cell(f"!{block.strip()}" if kind == "sh" else block.strip()))
    cells[1:1] = first
    for number, cell in enumerate(cells):
        cell.id = f"cell-{number}"
    return new_notebook(cells=cells, metadata={"kernelspec": {"name": "python3", "display_name": "Python 3"}})


def main(path: Path) -> None:
    """Run the notebook in an empty folder and write it with what it printed and drew."""
    made = notebook()
    with tempfile.TemporaryDirectory() as folder:
        NotebookClient(made, timeout=600, resources={"metadata": {"path": folder}}).execute()
    for cell in made.cells:
        cell.metadata.pop("execution", None)  # times, which differ in every run
        if printed := [each.text for each in cell.get("outputs", []) if each.output_type == "stream"]:
            lines = [line for line in re.split(r"[\r\n]+", "".join(printed)) if line and "%|" not in line]  # no bars
            shown = [each for each in cell.outputs if each.output_type != "stream"]
            cell.outputs = [*shown, new_output("stream", name="stdout", text="\n".join(lines))]
    nbformat.write(made, path)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
