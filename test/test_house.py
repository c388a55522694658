"""House rules, read from the source: who may import whom."""
import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NODES = ("localizer_node", "recorder_node", "trainer_node")
ROS = ("rclpy", "sld", "std_msgs", "sensor_msgs", "geometry_msgs", "nav_msgs", "diagnostic_msgs", "tf2_msgs", "tf2_ros", "builtin_interfaces",
       "rcl_interfaces", "std_srvs", "visualization_msgs", "cv_bridge", "launch", "rosbag2_py", "sld_ros")


def imports(module):
    """Names of all modules that a module of ours imports, inside functions too."""
    path = ROOT / (module.replace(".", "/") + ".py")
    if not path.exists():
        path = ROOT / module.replace(".", "/") / "__init__.py"
    found = set()
    for statement in ast.walk(ast.parse(path.read_text())):
        if isinstance(statement, ast.Import):
            found |= {alias.name for alias in statement.names}
        elif isinstance(statement, ast.ImportFrom):
            assert statement.level == 0, f"{module}: relative import"
            found |= {statement.module} | {f"{statement.module}.{alias.name}" for alias in statement.names}
    return found


def is_ours(module):
    path = ROOT / module.replace(".", "/")
    return module.split(".")[0] in ("sld_core", "sld_ros") and (path.with_suffix(".py").exists() or (path / "__init__.py").exists())


def reachable(module):
    """Every module of ours that importing this one may bring, with itself."""
    seen, todo = set(), [module]
    while todo:
        current = todo.pop()
        if current not in seen:
            seen.add(current)
            todo += [name for name in imports(current) if is_ours(name)]
    return seen


def modules(package):
    paths = (ROOT / package).rglob("*.py")
    return sorted(".".join(p.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for p in paths)


@pytest.mark.parametrize("module", modules("sld_core"))
def test_the_core_knows_nothing_of_ros(module):
    assert not [name for name in imports(module) if name.split(".")[0] in ROS]


@pytest.mark.parametrize("node", NODES)
def test_nodes_never_import_each_other(node):
    others = {f"sld_ros.{other}" for other in NODES if other != node}
    assert not reachable(f"sld_ros.{node}") & others


@pytest.mark.parametrize("module", ["sld_core.localizer", "sld_ros.localizer_node"])
def test_the_localizer_reaches_neither_mapping_nor_training(module):
    reached = reachable(module)
    assert "sld_core.geometry" in reached
    assert not [name for name in reached if name.startswith(("sld_core.mapping", "sld_core.training"))]


@pytest.mark.parametrize("module", [m for m in modules("sld_core") + modules("sld_ros") if not m.endswith(("cli", "progress", "demo"))
                                    and not m.startswith(("sld_core.commands", "sld_core.bench"))])
def test_only_the_command_line_prints(module):
    path = ROOT / (module.replace(".", "/") + ".py")
    tree = ast.parse(path.read_text() if path.exists() else "")
    calls = [c for c in ast.walk(tree) if isinstance(c, ast.Call) and isinstance(c.func, ast.Name) and c.func.id == "print"]
    assert not calls


@pytest.mark.parametrize("module", modules("sld_core") + modules("sld_ros"))
def test_files_stay_short(module):
    path = ROOT / (module.replace(".", "/") + ".py")
    assert not path.exists() or len(path.read_text().splitlines()) <= 320


def test_there_is_no_package_named_like_the_ros_package():
    assert not (ROOT / "sld").exists()
