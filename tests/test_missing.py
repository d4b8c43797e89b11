from __future__ import annotations

import pytest

from tests.helm import test_api_server as on_a_cluster


@pytest.mark.parametrize(("images", "outcome"), [("", pytest.skip.Exception), ("localhost/itool:test", pytest.fail.Exception)])
def test_without_a_cluster_its_tests_are_skipped_and_fail_where_one_is_promised(
    images: str, outcome: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLUSTER_IMAGES", images)
    monkeypatch.delenv("KUBECONFIG", raising=False)
    with pytest.raises((pytest.skip.Exception, pytest.fail.Exception), match="KUBECONFIG is not set") as caught:
        on_a_cluster.dry_run()
    assert caught.type is outcome
