# Source this to run nodes, `sld` and the tests: `. tools/env.sh`. Needs bash, and `make ros` before.
# ROS 2 is the one that tools/setup.sh found: this machine's, or the wheels in .venv.

_sld_root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
_sld_shell=$- && set +u   # colcon's scripts use unset variables

. "$_sld_root/.venv/bin/activate"
# Set by the ROS wheels of another environment, it would keep ours from finding their libraries.
unset _ROS_WHEELS_BOOTSTRAP_COMPLETE

if [ -e "$VIRTUAL_ENV/share/rclpy/package.xml" ]; then
  export ROS_VERSION=2 ROS_PYTHON_VERSION=3 ROS_DISTRO=jazzy
  export AMENT_PREFIX_PATH=$VIRTUAL_ENV CMAKE_PREFIX_PATH=$VIRTUAL_ENV
else
  for _sld_ros in /opt/ros/"${ROS_DISTRO:-}" /opt/ros/*; do
    # nothing to do where the user has sourced a ROS 2 already
    [ -z "${AMENT_PREFIX_PATH:-}" ] && [ -e "$_sld_ros/share/rclpy/package.xml" ] && . "$_sld_ros/setup.bash"
  done
fi
[ ! -e "$_sld_root/install/setup.bash" ] || . "$_sld_root/install/local_setup.bash"

# Our own Python comes from the source tree: install/ would not see a file that is new since the last build.
case ":${PYTHONPATH:-}:" in
  *":$VIRTUAL_ENV/src:"*) ;;
  *) export PYTHONPATH=$VIRTUAL_ENV/src${PYTHONPATH:+:$PYTHONPATH} ;;
esac

# Images need more shared memory than Fast DDS's default; discovery on this machine only, unless you say otherwise.
export FASTRTPS_DEFAULT_PROFILES_FILE=${FASTRTPS_DEFAULT_PROFILES_FILE:-$_sld_root/config/fastdds.xml}
export ROS_AUTOMATIC_DISCOVERY_RANGE=${ROS_AUTOMATIC_DISCOVERY_RANGE:-LOCALHOST}

# Idle worker threads of torch sleep instead of spinning on the cores that other nodes need.
export OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-PASSIVE}

case $_sld_shell in *u*) set -u ;; esac
unset _sld_root _sld_shell _sld_ros
