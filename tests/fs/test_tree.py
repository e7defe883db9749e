"""Which zones are which file."""

import pytest
from hypothesis import given, strategies as st

from zonefs_emu.fs.tree import ROOT_NODE_ID, Group, Tree, node_id, zone_no_of
from zonefs_emu.model.geometry import Geometry, merge_runs


def tree(nr_zones: int, *conventional: tuple[int, int], aggregated: bool = False) -> Tree:
    return Tree(
        Geometry(size=nr_zones * 8, zone_size=8, zone_capacity=8, conventional=conventional), aggregated=aggregated
    )


def listing(group: Group) -> list[tuple[int, int]]:
    return [group.zones(file_no) for file_no in range(group.nr_files)]


@pytest.mark.parametrize(
    ("found", "cnv", "seq"),
    [
        (tree(4), [], [(1, 1), (2, 1), (3, 1)]),
        (tree(4, (0, 1)), [], [(1, 1), (2, 1), (3, 1)]),
        (tree(4, (0, 2)), [(1, 1)], [(2, 1), (3, 1)]),
        (tree(4, (1, 1)), [(1, 1)], [(2, 1), (3, 1)]),
        (tree(4, (0, 4)), [(1, 1), (2, 1), (3, 1)], []),
        (tree(4, (0, 4), aggregated=True), [(1, 3)], []),
        (tree(8, (0, 3), (5, 2), aggregated=True), [(1, 2), (5, 2)], [(3, 1), (4, 1), (7, 1)]),
        (tree(8, (0, 3), (5, 2)), [(1, 1), (2, 1), (5, 1), (6, 1)], [(3, 1), (4, 1), (7, 1)]),
        (tree(1), [], []),
    ],
)
def test_zones_of_files(found: Tree, cnv: list[tuple[int, int]], seq: list[tuple[int, int]]) -> None:
    assert (listing(found.cnv), listing(found.seq)) == (cnv, seq)
    assert [group.name for group in found.groups] == ["cnv"] * bool(cnv) + ["seq"] * bool(seq)


@given(
    nr_zones=st.integers(1, 40),
    runs=st.lists(st.tuples(st.integers(0, 39), st.integers(1, 8)), max_size=6),
    aggregated=st.booleans(),
)
def test_each_zone_but_the_first_is_in_one_file(
    nr_zones: int, runs: list[tuple[int, int]], *, aggregated: bool
) -> None:
    conventional = merge_runs([(first, min(count, nr_zones - first)) for first, count in runs if first < nr_zones])
    found = tree(nr_zones, *conventional, aggregated=aggregated)
    zones = [
        zone_no for group in found.groups for first, count in listing(group) for zone_no in range(first, first + count)
    ]
    assert sorted(zones) == list(range(1, nr_zones))
    for group in found.groups:
        for file_no, (first, count) in enumerate(listing(group)):
            assert {group.file_no(first + i) for i in range(count)} == {file_no}
            assert found.group_of(first) is group
            assert group.find(str(file_no).encode()) == file_no
        assert group.file_no(0) is None


@pytest.mark.parametrize("name", [b"00", b"01", b"0x0", b"-1", b"x", b"", b"3", b"1 ", b"1\n", "²".encode(), b"+1"])
def test_other_names_are_no_files(name: bytes) -> None:
    assert tree(4).seq.find(name) is None


def test_inode_numbers() -> None:
    found = tree(8, (0, 2))
    assert (found.group_inode(found.cnv), found.group_inode(found.seq)) == (9, 10)
    assert found.group_of_inode(9) is found.cnv
    assert found.group_of_inode(10) is found.seq
    assert found.group_of_inode(8) is None
    # seq/ keeps its number where cnv/ is missing.
    assert tree(8).group_inode(tree(8).seq) == 10


def test_no_file_has_the_node_id_of_the_root() -> None:
    nodes = [node_id(zone_no) for zone_no in range(1, 100)]
    assert ROOT_NODE_ID not in nodes
    assert [zone_no_of(node) for node in nodes] == list(range(1, 100))


def test_directories_are_found_by_name() -> None:
    found = tree(4)
    assert found.find(b"seq") is found.seq
    assert found.find(b"cnv") is None
    assert found.find(b"Seq") is None


@pytest.mark.parametrize(
    ("conventional", "size"), [((), 6400), ((), 6350), (((0, 2), (5, 1)), 6400), (((0, 2), (62, 2)), 6350)]
)
def test_the_capacity_of_a_directory_is_that_of_its_zones(conventional: tuple[tuple[int, int], ...], size: int) -> None:
    geometry = Geometry(size=size, zone_size=100, zone_capacity=75, conventional=conventional)
    tree = Tree(geometry, aggregated=False)
    for group in tree.groups:
        capacities = [geometry.zone_cap(group.zones(number)[0]) for number in range(group.nr_files)]
        assert group.measure(geometry) == (sum(capacities), max(capacities))
