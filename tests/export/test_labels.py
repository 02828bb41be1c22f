"""Labels from files: those that can mean one thing are read, all others refused in one line."""

import json
from pathlib import Path

import pytest

from export import ExportError
from export.labels import read_labels

FORMS = (
    "one label a line, a JSON list of labels, or a JSON object of labels by index or with id2label"
)
ALONE = "write the labels alone, one a line in the order of their classes, or as a JSON list, which takes them as they are"


@pytest.fixture
def labels(tmp_path, monkeypatch):
    """Read labels from a file of these contents."""
    monkeypatch.chdir(tmp_path)

    def read(contents, name="labels.txt"):
        data = contents if isinstance(contents, bytes) else contents.encode()
        Path(name).write_bytes(data)
        return read_labels(name)

    return read


@pytest.mark.parametrize(
    "contents",
    [
        "cat\ndog\nbird",
        "cat\ndog\nbird\n",
        "cat\r\ndog\r\nbird\r\n",
        b"\xef\xbb\xbfcat\r\ndog\r\nbird\r\n",
        "cat\ndog\nbird\n".encode("utf-16"),
        " cat\ndog \nbird\n\n\n",
        '["cat", "dog", "bird"]',
        '["cat",\n"dog",\n"bird"]\n',
        b'\xef\xbb\xbf["cat", "dog", "bird"]',
        '{"0": "cat", "1": "dog", "2": "bird"}',
        '{"2": "bird", "0": "cat", "1": "dog"}',
        '{"id2label": {"0": "cat", "1": "dog", "2": "bird"}, "label2id": {"x": 7}, "hidden": 3}',
        '{"label2id": {"bird": 2, "cat": 0, "dog": 1}, "hidden": 3}',
    ],
)
def test_labels_are_read_in_each_form(labels, contents):
    """Lines, lists, objects by index and configurations contain the same labels, in class order."""
    found = labels(contents)

    assert found == ("cat", "dog", "bird")
    assert found.file == "labels.txt"


@pytest.mark.parametrize(
    "names",
    [
        ["0", "1", "2"],
        ["class 0", "class 1"],
        ["tench, Tinca tinca", "goldfish, Carassius auratus, carp", "crane"],
        ["n01440764 tench, fish", "n01443537 goldfish"],
        ["[PAD]", "[UNK]", "{name}"],
        ['the "fast" one', "it's"],
        ["-", "--", "+1"],
        ["猫", "👩\u200d🔬", "a\u2028b"],
        ["one"],
    ],
)
def test_a_line_is_a_label_as_it_stands(labels, names):
    """Numbers, commas, brackets and quotes within labels are theirs; only line ends part them."""
    assert labels("\n".join(names)) == tuple(names)
    assert labels(json.dumps(names)) == tuple(names)


@pytest.mark.parametrize(
    "names", [["0 cat", "1 dog"], ["a\tb", "c"], ['"a"', '"b"'], ["- a", "- b"]]
)
def test_a_json_list_takes_what_lines_are_refused_for(labels, names):
    """What looks like another form as lines is taken from a list, which leaves no doubt."""
    with pytest.raises(ExportError):
        labels("\n".join(names))

    assert labels(json.dumps(names)) == tuple(names)


@pytest.mark.parametrize(
    ("contents", "first", "form"),
    [
        ("0 cat\n1 dog\n", "0 cat", "labels behind their indices"),
        ("0,cat\n1,dog", "0,cat", "labels behind their indices"),
        ("0: cat\n2: dog", "0: cat", "labels behind their indices"),
        ("index,label\n0,cat\n1,dog", "index,label", "labels behind their indices"),
        ("cat,0\ndog,1", "cat,0", "labels before their indices"),
        ("cat=1\ndog=2\nowl=0", "cat=1", "labels before their indices"),
        ("cat\t0\ndog\t1", "cat\\t0", "a table with tabs"),
        ("cat,dog,bird\n", "cat,dog,bird", "a list within one line"),
        ("label,count\ncat,many\ndog,few", "label,count", "CSV"),
        ("cat;many\ndog;few", "cat;many", "CSV"),
        ("- cat\n- dog", "- cat", "a list in YAML or Markdown"),
    ],
)
def test_lines_that_are_more_than_labels_are_refused(labels, contents, first, form):
    """Indices, columns and list marks are named; no part of a line is guessed to be the label."""
    with pytest.raises(ExportError) as caught:
        labels(contents)

    assert str(caught.value) == (
        f"--labels labels.txt, line 1: expected a label alone, got '{first}': the file looks like "
        f"{form}; {ALONE}"
    )


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        ("", f": expected {FORMS}, got an empty file"),
        ("\n \n", f": expected {FORMS}, got an empty file"),
        ("cat\n\ndog", ", line 2: expected a label, got an empty line"),
        ("cat\ndog\ncat", ", line 3: expected each label once, got the 'cat' of line 1 again"),
        (
            '"cat"\n"dog"',
            f", line 1: expected a label alone, got '\"cat\"': the quotes would be part of it; {ALONE}",
        ),
        (
            '["cat",\n"dog"',
            (
                ": expected JSON, by its name or its beginning, got Expecting ',' delimiter: line 2 "
                "column 6 (char 13)"
            ),
        ),
        (
            "['cat', 'dog']",
            (
                ": expected JSON, by its name or its beginning, got Expecting value: line 1 column 2 "
                "(char 1)"
            ),
        ),
        ("[]", f": expected {FORMS}, got an empty list"),
        ("{}", f": expected {FORMS}, got an empty object"),
        ('["cat", 1]', ", [1]: expected a label as a string, got 1"),
        ('["cat", null]', ", [1]: expected a label as a string, got null"),
        ('["cat", " "]', ", [1]: expected a label, got ' '"),
        ('["a", "b", "a"]', ", [2]: expected each label once, got the 'a' of [0] again"),
        (
            '{"1": "cat", "2": "dog"}',
            ": expected each of the indices 0 to 1 as a key, as there are 2, got '2' and no '0'",
        ),
        (
            '{"id2label": {"0": "cat", "01": "dog"}}',
            (
                ", key 'id2label': expected each of the indices 0 to 1 as a key, as there are 2, got "
                "'01' and no '1'"
            ),
        ),
        (
            '{"0": "cat", "0": "dog"}',
            ": expected JSON, by its name or its beginning, got the key '0' twice",
        ),
        ('{"0": "cat", "1": ["dog"]}', ", key '1': expected a label as a string, got [\"dog\"]"),
        (
            '{"id2label": {"0": "cat", "1": "cat"}}',
            (
                ", key 'id2label.1': expected each label once, got the 'cat' of key 'id2label.0' "
                "again"
            ),
        ),
        (
            '{"hidden": 3}',
            f": expected {FORMS}, got an object with the key 'hidden'; if that is labels with their indices, put it under the key label2id",
        ),
        ('{"hidden": "3"}', f": expected {FORMS}, got an object with the key 'hidden'"),
        (
            '{"label2id": {"cat": 0, "dog": 0}}',
            ", key 'label2id.dog': expected each index once, got the 0 of 'cat' again",
        ),
        (
            '{"label2id": {"cat": 0, "dog": 2}}',
            ", key 'label2id.dog': expected an index of 0 to 1, as there are 2 labels, got 2",
        ),
        (
            '{"label2id": {"cat": true}}',
            ", key 'label2id.cat': expected an index of 0 to 0, as there are 1 labels, got true",
        ),
        (b"caf\xe9\n", ": expected text in UTF-8, got the byte 0xe9 in line 1"),
        (
            b"\x80\x02\0cat",
            (
                ": expected text in UTF-8, got bytes with zeros: a binary file, or UTF-16 without a "
                "byte order mark"
            ),
        ),
    ],
)
def test_what_names_no_classes_is_one_line(labels, contents, message):
    """A refusal names the file, the line or key, what was expected and what is there."""
    with pytest.raises(ExportError) as caught:
        labels(contents)

    assert str(caught.value) == f"--labels labels.txt{message}"


def test_a_json_file_is_json(labels):
    """What is called .json is read as JSON alone, and is never a line."""
    for contents, got in (
        ("cat\ndog", "Expecting value: line 1 column 1 (char 0)"),
        ("null", None),
    ):
        with pytest.raises(ExportError) as caught:
            labels(contents, "labels.json")
        expected = "JSON, by its name or its beginning" if got else FORMS
        assert (
            str(caught.value) == f"--labels labels.json: expected {expected}, got {got or 'null'}"
        )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("folder", "--labels folder: expected text in UTF-8, got a directory"),
        (
            "gs://b/labels.txt",
            (
                "--labels: expected a path on this machine, got 'gs://b/labels.txt'; copy it here "
                "first: gcloud storage cp -r gs://b/labels.txt . and pass labels.txt"
            ),
        ),
        ("cat,,dog", "labels: expected a name for each class, got '' for class 1"),
        ("cat,dog,", "labels: expected a name for each class, got '' for class 2"),
        ("a\udcff,b", "labels: expected text, got 'a\\udcff', which has half of a character"),
    ],
)
def test_labels_on_the_command_line_are_names_or_a_file(command, folder, words, message):
    """A folder, a URL and empty names are refused, status 2, before the model is looked at."""
    (folder / "folder").mkdir()
    ran = command("models.py:spec", "--labels", words, "--out", "b")

    assert (ran.status, ran.error) == (2, message)


def test_too_many_labels_name_their_file(command, folder):
    """Labels are counted against the classes of the output, and the file is named."""
    (folder / "l.txt").write_text("a\nb\nc\n")
    ran = command(
        *("models.py:spec", "--output", "classification:logits", "--labels", "l.txt"),
        *("--out", "b"),
    )

    assert (ran.status, ran.error) == (1, "labels of l.txt: expected 2 for float32[_, 2], got 3")
