"""House rules, read from the source: what stands on which floor, and who may import whom."""

import ast
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("sld_core", "sld_ros")
NODES = ("localizer_node", "recorder_node", "trainer_node")
ROS = (
    "rclpy",
    "sld",
    "std_msgs",
    "sensor_msgs",
    "geometry_msgs",
    "nav_msgs",
    "diagnostic_msgs",
    "tf2_msgs",
    "tf2_ros",
    "builtin_interfaces",
    "rcl_interfaces",
    "std_srvs",
    "visualization_msgs",
    "cv_bridge",
    "launch",
    "rosbag2_py",
    "sld_ros",
)
# From the ground up: a module imports its own floor and those below it. What stands flat at the top
# of the package goes by its name.
FLOORS = (
    ("types", "runtime", "files", "optional", "progress", "geometry", "spread"),
    ("config", "stages"),
    ("camera", "heatmap", "pnp", "fine_pass", "html"),
    ("data", "synthetic"),
    ("metric", "models"),
    ("sfm", "depth", "landmarks"),
    ("evaluation", "scene_file"),
    ("mapping", "localizer"),
    ("training",),
    ("baselines",),
    ("commands",),
    ("bench",),
    ("cli",),
)
FORBIDDEN = {  # beyond the floors
    "models": ("data", "sfm", "mapping", "training", "baselines", "bench"),
    "localizer": ("data", "sfm", "mapping", "training", "baselines", "bench"),
    "data": ("sfm", "models"),
    "commands": ("baselines",),
    "training": ("baselines",),
}
MAX_COLUMNS = 100
MAX_SHARE = 0.2  # of all lines of code, in one folder


def modules(package):
    """Names of all modules of a package, with their files."""
    paths = sorted((ROOT / package).rglob("*.py"))
    return {
        ".".join(p.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): p
        for p in paths
    }


OURS = {name: path for package in PACKAGES for name, path in modules(package).items()}
CORE = sorted(name for name in OURS if name.startswith("sld_core."))


def imports(module):
    """Names of all modules that a module of ours imports, inside functions too."""
    found = set()
    for statement in ast.walk(ast.parse(OURS[module].read_text())):
        if isinstance(statement, ast.Import):
            found |= {alias.name for alias in statement.names}
        elif isinstance(statement, ast.ImportFrom):
            assert statement.level == 0, f"{module}: relative import"
            found |= {statement.module} | {
                f"{statement.module}.{alias.name}" for alias in statement.names
            }
    return found


IMPORTS = {module: imports(module) & set(OURS) for module in OURS}


def reachable(module):
    """Every module of ours that importing this one may bring, with itself."""
    seen, todo = set(), [module]
    while todo:
        current = todo.pop()
        if current not in seen:
            seen.add(current)
            todo += IMPORTS[current]
    return seen


def room(module):
    """The folder of a core module below sld_core, or its own name where it stands flat."""
    return module.split(".")[1]


def test_every_room_stands_on_one_floor():
    rooms = [name for floor in FLOORS for name in floor]
    assert sorted(rooms) == sorted({room(module) for module in CORE})


@pytest.mark.parametrize("module", CORE)
def test_no_import_runs_upwards(module):
    floor = {name: i for i, floor in enumerate(FLOORS) for name in floor}
    above = [
        other
        for other in IMPORTS[module]
        if other != "sld_core" and floor[room(other)] > floor[room(module)]
    ]
    assert not above


def test_no_import_goes_round_in_a_circle():
    done, path = set(), []

    def visit(module):
        if module in path:
            raise AssertionError(" -> ".join([*path[path.index(module) :], module]))
        if module not in done:
            path.append(module)
            for other in sorted(IMPORTS[module]):
                if not module.startswith(
                    other + "."
                ):  # a package is imported with each of its modules
                    visit(other)
            done.add(path.pop())

    for module in OURS:
        visit(module)


@pytest.mark.parametrize("name", FORBIDDEN)
def test_rooms_that_must_not_know_each_other(name):
    """Not even through others."""
    for module in (m for m in CORE if room(m) == name):
        met = {
            other
            for other in reachable(module)
            if other != "sld_core" and room(other) in FORBIDDEN[name]
        }
        assert not met, module


@pytest.mark.parametrize("module", CORE)
def test_the_core_knows_nothing_of_ros(module):
    assert not [name for name in imports(module) if name.split(".")[0] in ROS]


def test_pycolmap_comes_through_its_door():
    """Its import would take SIGTERM from us; see sld_core.optional."""
    assert not [m for m in OURS if "pycolmap" in imports(m)]


@pytest.mark.parametrize("node", NODES)
def test_nodes_never_import_each_other(node):
    assert not reachable(f"sld_ros.{node}") & {
        f"sld_ros.{other}" for other in NODES if other != node
    }


def test_the_localizer_node_reaches_neither_mapping_nor_training():
    reached = {room(m) for m in reachable("sld_ros.localizer_node") if m.startswith("sld_core.")}
    assert "localizer" in reached
    assert not reached & {"sfm", "mapping", "training", "baselines", "bench"}


MAY_PRINT = (
    "sld_core.cli",
    "sld_core.progress",
    "sld_core.commands",
    "sld_core.bench",
    "sld_ros.demo",
)


@pytest.mark.parametrize("module", [m for m in OURS if not m.startswith(MAY_PRINT)])
def test_only_the_command_line_prints(module):
    calls = [c for c in ast.walk(ast.parse(OURS[module].read_text())) if isinstance(c, ast.Call)]
    assert not [c for c in calls if isinstance(c.func, ast.Name) and c.func.id == "print"]


@pytest.mark.parametrize("folder", ["sld_core", "sld_ros", "test", "tools", "launch"])
def test_no_line_is_too_long(folder):
    long = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in sorted((ROOT / folder).rglob("*.py"))
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if len(line) > MAX_COLUMNS
    ]
    assert not long


def test_no_folder_holds_too_much():
    lines = Counter()
    for path in OURS.values():
        lines[path.parent.relative_to(ROOT).as_posix()] += len(path.read_text().splitlines())
    shares = {folder: count / lines.total() for folder, count in lines.items()}
    assert max(shares.values()) < MAX_SHARE, max(shares, key=shares.get)


def test_there_is_no_package_named_like_the_ros_package():
    assert not (ROOT / "sld").exists()
