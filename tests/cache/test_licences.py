"""The licence of weights: by name, in a model card, in a cache's header, and of several together."""

import numpy as np
import pytest

from cache.format import Clip, Header
from cache.licences import UNKNOWN, Licence, all_of, known_licence, licence_from_card, licence_of, licence_of_run
from cache.reader import open_cache
from cache.writer import CacheWriter

PAPERS = "audeering/wav2vec2-large-robust-12-ft-emotion-msp-dim"
NC = Licence(name="CC BY-NC-SA 4.0", commercial_use="no")
MIT = Licence(name="MIT", commercial_use="yes")


def test_known_weights_are_known_by_id_and_by_the_name_of_a_copys_folder():
    assert known_licence(PAPERS) == known_licence(f"/models/{PAPERS.partition('/')[2]}/") == NC
    assert known_licence("silero") == MIT
    assert known_licence("/runs/silero") is None  # a run of that name need not be it
    assert known_licence("some/thing") is None


@pytest.mark.parametrize(
    ("card", "name", "use"),
    [
        ({"license": "cc-by-nc-sa-4.0"}, "CC BY-NC-SA 4.0", "no"),
        ({"license": "cc-by-nc-4.0"}, "CC BY-NC 4.0", "no"),
        ({"license": "cc-by-4.0"}, "CC BY 4.0", "yes"),
        ({"license": "apache-2.0"}, "Apache-2.0", "yes"),
        ({"license": ["mit", "cc-by-nc-nd-3.0"]}, "MIT, CC BY-NC-ND 3.0", "no"),
        ({"license": "other", "license_name": "fair-noncommercial-research"}, "fair-noncommercial-research", "no"),
        ({"license": "other"}, "other", "unknown"),
        ({"license": "llama3"}, "llama3", "unknown"),
        ({"tags": ["audio"]}, "unknown", "unknown"),
    ],
)
def test_a_model_card_says_the_licence_and_what_it_allows(card, name, use):
    assert licence_from_card(card) == Licence(name=name, commercial_use=use)


def header(**provenance: object) -> Header:
    fingerprint = {"backbone": "x", "weights_sha256": "1", "dtype": "float32"}
    return Header(fingerprint=fingerprint, dim=2, provenance=provenance)


def test_a_cache_keeps_it_beside_the_fingerprint(tmp_path):
    with CacheWriter(tmp_path / "c.zarr", header(licence=NC.to_dict())) as writer:
        writer.add(Clip("a", np.ones((3, 2), np.float32), None, None, 1.0))
    with open_cache(tmp_path / "c.zarr") as store:
        assert licence_of(store.header) == NC
        header(licence=MIT.to_dict()).must_match(store.header, "here")  # it changes no number


def test_older_caches_and_runs_are_known_by_their_source():
    assert licence_of(header(source=PAPERS)) == licence_of_run({"features": {"source": PAPERS}}) == NC
    assert licence_of(header(source="/some/folder")) == licence_of_run({}) == UNKNOWN
    assert licence_of_run({"backbone": {"source": "silero"}}) == MIT
    assert licence_of_run({"licence": NC.to_dict(), "features": {"source": "silero"}}) == NC
    assert licence_of(Header(fingerprint={"backbone": "silero"}, dim=2)) == UNKNOWN  # imported under that name


def test_several_weights_bind_as_the_strictest_does():
    assert all_of([MIT, NC, MIT]) == Licence(name="MIT, CC BY-NC-SA 4.0", commercial_use="no")
    assert all_of([MIT, UNKNOWN]).commercial_use == "unknown"
    assert all_of([MIT, MIT]) == MIT
