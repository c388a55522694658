"""`sld bench depth`: the error of depth completion on masked parts of measured depth images."""

from __future__ import annotations

from sld_core.commands.common import (
    add_json,
    add_list,
    add_path,
    list_path,
    write_json,
)
from sld_core.types import SldError

DEFAULT_IMAGES = 12
COLUMNS = (  # key, heading, how to print the value
    ("mae_mm", "MAE mm", "{:.1f}"),
    ("mse_mm2", "MSE mm²", "{:.0f}"),
    ("absrel", "AbsRel", "{:.4f}"),
    ("delta1", "delta1", "{:.4f}"),
    ("s_per_image", "s/image", "{:.2f}"),
)
MASKS = ("both", "blocks", "regions", "sparse")  # of masking.mask


def add(commands) -> None:
    """`depth` among the subcommands of `sld bench`."""
    parser = commands.add_parser(
        "depth",
        help="mask known depths, complete them, and measure the error",
        description="All methods get the same masks; errors are means over the images.",
    )
    text = (
        "folder of frames: camera-intrinsics.txt, *.color.jpg, *.pose.txt, *.depth.png (16 bit, "
        "millimetres)"
    )
    add_path(parser, "--frames", "DIR", text, required=True)
    add_list(parser)
    parser.add_argument(
        "--model",
        required=True,
        metavar="FILE.onnx",
        help="monocular depth network: an ONNX file, or the folder or name of a transformers model",
    )
    parser.add_argument(
        "--max-images",
        type=int,
        default=DEFAULT_IMAGES,
        metavar="N",
        help=f"images, spread evenly over the list (default {DEFAULT_IMAGES}; the paper's "
        "method takes seconds for each)",
    )
    parser.add_argument(
        "--mask",
        choices=MASKS,
        default=MASKS[0],
        help="what to mask; both (default): blocks and whole regions; sparse: all but 400 corners "
        "of texture",
    )
    parser.add_argument(
        "--preprocessing",
        choices=("auto", "raw255", "imagenet"),
        default="auto",
        help="of the network's input",
    )
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="of the masks")
    add_json(parser)
    text = "also write a page with depth before and after completion, and loss curves"
    add_path(parser, "--report", "FILE.html", text)
    parser.set_defaults(run=_run)


def _run(args) -> None:
    from sld_core.bench.depth_completion.trials import run_trials, summary
    from sld_core.data.frame_folder import read_frames
    from sld_core.depth.monocular import MonocularDepth
    from sld_core.progress import Bar

    if args.max_images < 1 or args.seed < 0:
        raise SldError(
            f"--max-images {args.max_images} --seed {args.seed}: expected at least 1 and 0"
        )
    frames = read_frames(args.frames, list_path(args.list, args.frames))
    network = MonocularDepth(args.model, args.preprocessing)
    bar = Bar()
    trials = run_trials(frames, network, args.mask, args.max_images, args.seed, bar)
    bar.done()
    out = {"mask": args.mask, **summary(trials)}
    rows = table(out)
    for row in rows:
        print(f"{row[0]:32s}" + "".join(f"{cell:>12s}" for cell in row[1:]))
    write_json(args.json, out)
    if args.report:
        from sld_core.bench.depth_completion.report import write_report

        write_report(args.report, f"Depth completion: {args.frames.name}", trials, rows)


def table(out: dict) -> list[list[str]]:
    """Heading and one row per method, as text."""
    from sld_core.depth.completion import METHODS

    headings = [heading for _, heading, _ in COLUMNS]
    rows = [[f"{out['images']} images, masked: {out['mask']}", *headings]]
    for name in METHODS:
        label = f"{name} (default)" if name == out["default_method"] else name
        rows.append([label, *(form.format(out[f"{name}_{key}"]) for key, _, form in COLUMNS)])
    return rows
