"""map->odom from fixes: what is sent, with which stamps and names."""

from types import SimpleNamespace

import numpy as np
import pytest

from sld_core.data.tf_tree import TransformError, TransformReason
from sld_core.geometry import make_transform

pytestmark = pytest.mark.ros

SECOND = 10**9


def at(x):
    return make_transform(np.eye(3), np.array([x, 0.0, 0.0]))


@pytest.fixture
def robot(ros):
    """Its base is at x = seconds in odom, its camera 0.5 m before it; what is sent is kept."""
    from tf2_msgs.msg import TFMessage

    from sld_ros.conversions import transform_message
    from sld_ros.map_odom import MapOdom

    map_odom = MapOdom(ros.node("localizer"), "/map", "/odom", "/base", tolerance_s=0.1)
    sent = []
    map_odom._broadcaster = SimpleNamespace(send=lambda transforms: sent.extend(transforms))
    moved = [transform_message(at(s), int(s * SECOND), "odom", "base") for s in (10, 10.25)]
    map_odom._listener.insert(TFMessage(transforms=moved))
    mount = transform_message(at(0.5), SECOND, "base", "camera")
    map_odom._listener.insert_static(TFMessage(transforms=[mount]))
    return SimpleNamespace(map_odom=map_odom, sent=sent)


def test_a_fix_is_sent_with_the_stamp_of_its_image_and_names_without_a_slash(robot):
    from sld_ros.conversions import matrix_from_transform, ns_from_time

    stamp = int(10.125 * SECOND)
    robot.map_odom.update(at(3), "/camera", stamp, received_ns=0, timeout_s=0)
    first = robot.sent[0]
    # the base is at 2.5 m in the map and at 10.125 m in odom
    np.testing.assert_allclose(matrix_from_transform(first.transform), at(-7.625), atol=1e-9)
    assert (first.header.frame_id, first.child_frame_id) == ("map", "odom")
    assert ns_from_time(first.header.stamp) == stamp


@pytest.mark.parametrize(
    "frame, stamp, reason",
    [
        ("", 10 * SECOND, TransformReason.UNKNOWN_FRAME),
        ("/", 10 * SECOND, TransformReason.UNKNOWN_FRAME),
        ("camera", 0, TransformReason.NO_STAMP),
        ("camera", -SECOND, TransformReason.NO_STAMP),
        ("camera", 9 * SECOND, TransformReason.TOO_OLD),
    ],
)
def test_what_tf_does_not_know_is_a_reason_and_changes_nothing(robot, frame, stamp, reason):
    with pytest.raises(TransformError, match="no TF between") as error:
        robot.map_odom.update(at(3), frame, stamp, received_ns=0, timeout_s=0)
    assert error.value.reason is reason and robot.sent == []
