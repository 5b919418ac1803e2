"""Tables as people save them: delimiters, encodings, and headers in any case."""

import pytest

from cache.errors import TableError
from cache.exchange.tables import read_table

ROWS = [["1", "0.5"], ["2", "1"]]


@pytest.mark.parametrize(
    "text",
    [
        "Filename,Joy\n1,0.5\n2,1\n",
        "Filename;Joy\r\n1;0.5\r\n2;1\r\n",
        "Filename\tJoy\n1\t0.5\n2\t1\n",
        "\n filename , Joy \n\n 1 , 0.5 \n2,1\n,\n",
        '"FILENAME";"Joy"\n"1";"0.5"\n"2";"1"',
        "sep=;\nFilename;Joy\n1;0.5\n2;1\n",
        "Filename,Joy\r1,0.5\r2,1\r",
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_a_table_reads_the_same_however_it_was_saved(tmp_path, text, encoding):
    (tmp_path / "t.csv").write_bytes(text.encode(encoding))
    table = read_table(tmp_path / "t.csv")
    assert table.header == ("Filename", "Joy")
    assert table.rows == ROWS
    assert table.where(1) == f"{tmp_path / 't.csv'}, line {table.lines[1]}"


def test_big_endian_utf_16_has_its_own_mark(tmp_path):
    (tmp_path / "t.csv").write_bytes(b"\xfe\xff" + "Filename,Joy\né,1\n".encode("utf-16-be"))
    assert read_table(tmp_path / "t.csv").rows == [["é", "1"]]


def test_a_delimiter_within_names_and_quotes_is_text(tmp_path):
    (tmp_path / "t.csv").write_text('Filename;"Joy, loud"\n"a;b,c";1\n')
    table = read_table(tmp_path / "t.csv")
    assert (table.header, table.rows) == (("Filename", "Joy, loud"), [["a;b,c", "1"]])


def test_of_two_columns_that_may_be_meant_the_one_spelt_exactly_names_the_clips(tmp_path):
    (tmp_path / "t.csv").write_text("filename,Filename\nx,1\n")
    assert read_table(tmp_path / "t.csv").header == ("filename", "Filename")
    (tmp_path / "t.csv").write_text("filename,FileName\nx,1\n")
    assert "Filename" not in read_table(tmp_path / "t.csv").header


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("Filename,Joy\ncafé,0.5\n".encode("latin-1"), "is not in UTF-8"),
        ("Filename,Joy\na,1\n".encode("utf-16-le"), "is not in UTF-8 .*NUL"),
        (b"\xff\xfe" + "Filename,Joy\n".encode("utf-16-le") + b"\x00", "is not in UTF-16-LE"),
        (b'Filename,Joy\n"a,0.5\n' + b"x" * 200_000, "does a quote never end"),
    ],
)
def test_what_is_no_table_is_one_sentence(tmp_path, content, said):
    (tmp_path / "t.csv").write_bytes(content)
    with pytest.raises(TableError, match=said):
        read_table(tmp_path / "t.csv")


def test_a_row_of_another_length_is_named_and_decimal_commas_are_suspected(tmp_path):
    (tmp_path / "t.csv").write_text("Filename,Joy,Sad\n1,0,1\n2,0,5,0,1\n")
    with pytest.raises(TableError, match=r"line 3: 5 cells, and the header has 3; are these decimal commas"):
        read_table(tmp_path / "t.csv").check_cells()
