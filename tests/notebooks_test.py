"""Every notebook is committed without what a run leaves in it, and runs from its first cell to its last."""

import ast
import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
NAMES = ("attention_explained", "intervene", "mole", "quickstart", "scaling")
KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}
EXTRAS = ("ipykernel", "matplotlib", "nbclient", "nbformat")
LONG = ("attention_explained", "intervene", "mole")  # what they show has tests of its own
LONGEST = 30  # lines of a cell of code
FIGURES = 3  # at least, in every notebook

every_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def code(path):
    """The cells of code as they are in the file."""
    return [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]


def test_the_notebooks_are_found():
    assert tuple(path.stem for path in NOTEBOOKS) == NAMES


@every_notebook
def test_nothing_of_a_run_is_committed(path):
    notebook = json.loads(path.read_text())
    assert notebook["metadata"] == {"kernelspec": KERNEL, "language_info": {"name": "python"}}
    assert all(cell["metadata"] == {} for cell in notebook["cells"])
    assert all((cell["outputs"], cell["execution_count"]) == ([], None) for cell in code(path))


@every_notebook
def test_it_is_valid_and_begins_with_a_title(path):
    nbformat = pytest.importorskip("nbformat", reason="the extra notebooks is not installed")
    notebook = nbformat.read(path, as_version=nbformat.NO_CONVERT)
    nbformat.validate(notebook)
    assert notebook.cells[0].source.startswith("# ")
    assert len({cell.id for cell in notebook.cells}) == len(notebook.cells)


@every_notebook
def test_it_shows_and_defines_nothing(path):
    for cell in code(path):
        assert len(cell["source"]) <= LONGEST
        nodes = list(ast.walk(ast.parse("".join(cell["source"]))))
        assert not [node for node in nodes if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef))]


@every_notebook
def test_what_it_links_to_is_there(path):
    for name in re.findall(r"\]\(([^)]+\.ipynb)\)", path.read_text()):
        assert (path.parent / name).is_file(), name


@pytest.fixture(scope="module")
def execute(environment, tmp_path_factory):
    """`execute(path, "a = 1")` runs a notebook, small, with these lines behind its first cell of code.

    All run in one folder, so that the second one to train a model finds it trained; their kernels are this interpreter.
    """
    missing = [name for name in EXTRAS if importlib.util.find_spec(name) is None]
    if missing:
        pytest.skip(f"{', '.join(missing)} not installed: the extra dev has them")
    folder = tmp_path_factory.mktemp("notebooks")
    kernel = folder / "jupyter" / "kernels" / "here"
    kernel.mkdir(parents=True)
    argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}", "--log-level=ERROR"]
    (kernel / "kernel.json").write_text(json.dumps({"argv": argv, "display_name": "here", "language": "python"}))
    variables = {
        **environment(1),
        "IPYTHONDIR": str(folder / "ipython"),
        "JUPYTER_PATH": str(folder / "jupyter"),
        "JUPYTER_RUNTIME_DIR": str(folder / "runtime"),
        "MPLBACKEND": "module://matplotlib_inline.backend_inline",
        "NOTEBOOK_SIZE": "small",
    }

    def run(path, lines=""):
        notebook, copy = json.loads(path.read_text()), folder / path.name
        first = next(index for index, cell in enumerate(notebook["cells"]) if cell["cell_type"] == "code")
        notebook["cells"].insert(first + 1, {**notebook["cells"][first], "id": "inserted", "source": lines})
        copy.write_text(json.dumps(notebook))
        command = [sys.executable, "-c", "from nbclient.cli import main; main()", str(copy)]
        options = {"capture_output": True, "text": True, "timeout": 300, "env": variables}
        process = subprocess.run([*command, "--inplace", "--kernel_name=here"], **options)
        assert process.returncode == 0, process.stderr
        return code(copy)

    return run


def check(cells):
    """Fails unless the cells ran quietly, and each one that draws or opens the explorer shows that and nothing else."""
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert [output["text"] for output in outputs if output.get("name") == "stderr"] == []
    sources = ["".join(cell["source"]) for cell in cells]
    assert sum("plt.subplots(" in source for source in sources) >= FIGURES
    for source, cell in zip(sources, cells, strict=True):
        shown = [output["data"] for output in cell["outputs"] if "data" in output]
        if "plt.subplots(" in source:
            assert ["image/png" in data for data in shown] == [True], source
        if "explorer.show(" in source:
            assert ["".join(data.get("text/html", ""))[:7] for data in shown] == ["<iframe"], source


@pytest.mark.parametrize(
    "path",
    [pytest.param(path, marks=[pytest.mark.slow] * (path.stem in LONG), id=path.stem) for path in NOTEBOOKS],
)
def test_it_runs(execute, path):
    check(execute(path))


def test_mole_also_runs_where_no_pretrained_model_is_installed(execute):
    cells = execute(ROOT / "notebooks" / "mole.ipynb", 'senses.PACKAGE = "no_such_package"')
    check(cells)
    printed = [line for cell in cells for output in cell["outputs"] for line in output.get("text", ())]
    assert any("near the meadow , a mole" in line for line in printed)
