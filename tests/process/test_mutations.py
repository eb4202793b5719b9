"""Small mistakes in evaluation and training are noticed: each of `tests.mutations.MUTATIONS` makes a test fail."""

import pytest

from tests.mutations import MUTATIONS, ROOT, run


def test_mutations_fit_the_code() -> None:
    for mutation in MUTATIONS:
        assert (ROOT / mutation.file).read_text().count(mutation.old) == 1, mutation.name
        assert all((ROOT / test).is_file() for test in mutation.tests), mutation.name
    assert len({mutation.name for mutation in MUTATIONS}) == len(MUTATIONS)


@pytest.mark.slow
@pytest.mark.timeout(5400)
def test_every_mutation_is_killed() -> None:
    assert run(MUTATIONS) == []
