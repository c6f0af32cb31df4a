"""What a job remembers of its input files."""

from chemscale.runtime.jobs import Inputs


def test_rows_of_one_table_are_one_file(tmp_path):
    table, other = tmp_path / "spectra.npz", tmp_path / "star.fits"
    table.write_bytes(b"x" * 1000)
    other.write_bytes(b"y" * 10)
    paths = [f"{table}#{row}" for row in range(50)] + [str(other)]
    inputs = Inputs.of([str(i) for i in range(51)], paths)
    assert inputs.total_bytes == 1010
    assert Inputs.unpack(inputs.pack()).total_bytes == 1010
    assert Inputs.unpack(inputs.pack()).digest() == inputs.digest()
