"""People's data go in, are trained on and come out again as they came: some of those on docs/ways-in.md."""

import pytest
import ways_in

SHOWN = ["European", "survey", "nested", "labels", "counts, .npy", "phone"]


@pytest.mark.parametrize("title", SHOWN)
def test_data_come_out_as_they_came(tmp_path, title):
    (way,) = [way for way in ways_in.WAYS if title in way.title]
    result = ways_in.go_through(way, tmp_path)
    assert bool(result.out) == way.trains


def test_a_changed_entry_is_found_out(tmp_path):
    before, after = tmp_path / "before.csv", tmp_path / "after.csv"
    before.write_text("a,b\n1.50,\n2.0,x\n")
    rows = ["1.50,y", "2.0,x"] * 2
    after.write_text("draw,a,b\n" + "".join(f"{n // 2 + 1},{row}\n" for n, row in enumerate(rows)))
    ways_in.observed_cells(before, after)
    after.write_text(after.read_text().replace("1.50", "1.5"))
    with pytest.raises(AssertionError, match=r"'1.50' came back as '1.5'"):
        ways_in.observed_cells(before, after)
    rows[0] = "1.50,"
    after.write_text("draw,a,b\n" + "".join(f"{n // 2 + 1},{row}\n" for n, row in enumerate(rows)))
    with pytest.raises(AssertionError):
        ways_in.observed_cells(before, after)
