"""The tests of this folder need a browser; `tox -e page` names them."""

collect_ignore_glob = ["test_*.py"]
