"""Tables of the benchmarks: texts to the left, numbers to the right, "-" for what is missing."""

from sld_core.bench.table import print_headings, print_row

COLUMNS = (("name", "rule", 8, "s"), ("recall", "recall", 7, ".1%"), ("cm", "cm", 5, ".2f"))


def test_values_stand_under_their_headings(capsys):
    print_headings(COLUMNS)
    print_row(COLUMNS, {"name": "random", "recall": 0.5, "cm": None, "not shown": 1})
    assert capsys.readouterr().out == "rule      recall    cm\nrandom     50.0%     -\n"
