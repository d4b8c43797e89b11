"""The page and its tree explorer, without a browser: what it holds, and that no data can become markup."""

import itertools
import json
import re
from importlib import resources

import pytest

from itool.evaluate.explorer import MAX_NODES, build_explorer, locate_pair, most_visited
from itool.evaluate.report import build_report
from itool.evaluate.report_html import embedded_json, render_html
from itool.evaluate.report_inputs import ReportInputs
from itool.records import Node, PreferencePair, SearchTree, ToolCall
from itool.search import mcts
from itool.search.pairs import extract_pairs
from tests.evaluate.fake_run import fake_config, fake_example, fake_inputs


@pytest.fixture(scope="module")
def inputs():
    return fake_inputs()


def page_data(page):
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)[1])


def node(parent, ids, visits=1):
    return Node(parent=parent, step_ids=ids, text=str(ids), prior=1.0, visits=visits, value=0.0, outcome=0.0)


def contrast(one, other):
    """The contrast ratio of two colours."""

    def luminance(colour):
        channels = (int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5))
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def pair(prefix, chosen, rejected, example_id="a"):
    return PreferencePair(
        example_id=example_id,
        prompt_ids=[],
        prefix_ids=prefix,
        chosen_ids=chosen,
        rejected_ids=rejected,
        chosen_value=1.0,
        rejected_value=0.0,
        chosen_visits=2,
        rejected_visits=2,
        chosen_correct=1,
        rejected_wrong=1,
    )


def search_tree(example_id, nodes):
    return SearchTree(
        example_id=example_id,
        prompt_ids=[],
        nodes=nodes,
        stopped=mcts.SOLVED,
        simulations=1,
        sampled_tokens=1,
        samples=1,
        correct_samples=0,
    )


def test_the_page_holds_the_report_and_needs_no_network(inputs):
    report = build_report(inputs)
    page = render_html(report, build_explorer(inputs))
    assert page_data(page)["report"] == report.model_dump(mode="json")
    assert not re.findall(r"""(?:src|href)=["'](?!#|data:)""", page.split('<script type="application/json"')[0])
    assert "default-src 'none'" in page


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_lines_and_words_stand_out_from_the_paper(scheme):
    """WCAG 2.2: 3:1 for graphics, 4.5:1 for text."""
    style = resources.files("itool.evaluate").joinpath("report.css").read_text(encoding="utf-8")
    colours = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", re.findall(r":root \{(.*?)\}", style, re.S)[scheme]))
    lines = {name: contrast(colour, colours["paper"]) for name, colour in colours.items() if re.fullmatch(r"k\d|s-\w+|faint", name)}
    assert {"k1", "k5", "s-all", "faint"} <= lines.keys()
    assert all(found >= 3 for found in lines.values()), lines
    words = {name: contrast(colours[name], colours["paper"]) for name in ("ink", "soft", "accent", "good", "bad")}
    assert all(found >= 4.5 for found in words.values()), words
    assert not re.search(r"[{ ;]color: var\(--faint\)", style.replace("button:disabled { color: var(--faint)", "")), "too faint for text"


def test_data_cannot_leave_the_script_element(inputs):
    page = render_html(build_report(inputs), build_explorer(inputs))
    assert "window.broken" in page
    assert "<script>window.broken" not in page
    assert "<img src=x" not in page
    assert page_data(page)["explorer"]["examples"]["demo-0000"]["messages"][0][1] == fake_example(0).messages[0].content


def test_embedded_json_survives_what_json_or_html_cannot_hold():
    text = embedded_json({"a": float("nan"), "b": "</script><!--\u2028", "c": "\ud800", "d": (1, 2)})
    assert "<" not in text
    assert json.loads(text) == {"a": None, "b": "</script><!--\u2028", "c": "?", "d": [1, 2]}


def test_a_run_without_anything_has_a_page():
    inputs = ReportInputs(config=fake_config())
    assert "<h1" in render_html(build_report(inputs), build_explorer(inputs))


def test_every_tree_is_there_whole_while_the_page_has_room(inputs):
    explorer = build_explorer(inputs)
    for part in explorer.iterations:
        searched = {tree.example_id: tree for tree in inputs.trees[part.iteration]}
        assert {tree.example_id: len(tree.nodes) for tree in part.trees} == {name: len(tree.nodes) for name, tree in searched.items()}
        assert part.trees_left_out == 0
        assert [bool(tree.pairs) for tree in part.trees] == sorted((bool(tree.pairs) for tree in part.trees), reverse=True)
    assert set(explorer.examples) == {tree.example_id for part in explorer.iterations for tree in part.trees}


def test_a_full_page_holds_as_much_of_every_iteration_and_counts_the_rest(inputs):
    limit = 20_000
    explorer = build_explorer(inputs, limit_bytes=limit)
    assert 0.9 * limit < len(embedded_json(explorer.model_dump(mode="json"))) < 1.1 * limit
    held = [len(part.trees) for part in explorer.iterations]
    assert max(held) - min(held) <= 1
    for part in explorer.iterations:
        assert part.trees_left_out == len(inputs.trees[part.iteration]) - len(part.trees) > 0
        fruitful = [bool(tree.pairs) for tree in part.trees]
        assert fruitful == sorted(fruitful, reverse=True)
        assert sum(fruitful) in range(3 * len(fruitful) // 4, 3 * len(fruitful) // 4 + 2), "one in four gave no pair"
    assert set(explorer.examples) == {tree.example_id for part in explorer.iterations for tree in part.trees}


def test_a_page_without_room_for_whole_trees_cuts_them_first():
    deep = [node(None, []), *(node(i, [i], visits=1000 - i) for i in range(2 * MAX_NODES))]
    trees = [search_tree(name, deep) for name in ("a", "b", "c")]
    whole = build_explorer(ReportInputs(config=fake_config(), trees={1: trees}))
    assert [tree.nodes_left_out for tree in whole.iterations[0].trees] == [0, 0, 0]
    room = 2 * len(embedded_json(whole.model_dump(mode="json"))) // 3
    cut = build_explorer(ReportInputs(config=fake_config(), trees={1: trees}), limit_bytes=room)
    assert [(len(tree.nodes), tree.nodes_left_out) for tree in cut.iterations[0].trees] == [(MAX_NODES, MAX_NODES + 1)] * 3


def test_token_ids_stay_out_of_the_page():
    """A prompt of SmolLM2 has some 600 of them."""
    example = fake_example(0)
    prompt, steps = [40_000 + i for i in range(600)], [list(range(50_000 + 9 * i, 50_009 + 9 * i)) for i in range(50)]
    nodes = [node(None, []), *(node(0, ids).model_copy(update={"text": "f(x=1)"}) for ids in steps)]
    tree = search_tree(example.id, nodes).model_copy(update={"prompt_ids": prompt})
    found = pair([], steps[0], steps[1], example.id).model_copy(update={"prompt_ids": prompt, "ending_ids": steps[2]})
    inputs = ReportInputs(config=fake_config(), trees={1: [tree]}, pairs={1: [found]}, examples={example.id: example})
    page = render_html(build_report(inputs), build_explorer(inputs))
    [shown] = page_data(page)["explorer"]["iterations"][0]["trees"]
    assert (len(shown["nodes"]), len(shown["pairs"])) == (51, 1)
    assert not {str(number) for number in [*prompt, *itertools.chain(*steps)]} & set(re.findall(r"\d+", page))


def test_a_tool_that_many_examples_offer_stands_once(inputs):
    explorer = build_explorer(inputs)
    assert [tool["name"] for tool in explorer.tools] == ["weather_forecast", "weather_history"]
    assert all(example.tools == [0, 1] for example in explorer.examples.values())


def test_every_pair_is_found_in_its_tree(inputs):
    explorer = build_explorer(inputs)
    for part in explorer.iterations:
        assert sum(len(tree.pairs) for tree in part.trees) == len(inputs.pairs[part.iteration])
        for tree in part.trees:
            assert all(tree.nodes[p.chosen][0] == tree.nodes[p.rejected][0] == p.parent for p in tree.pairs)


def test_a_pair_is_shown_at_the_node_where_it_arose():
    """Two states offer the same steps, and both give a pair."""

    def end(parent, ids, correct):
        return node(parent, ids, 4).model_copy(update={"action_value": float(correct), "terminal": True, "correct": correct})

    first, second = node(0, [1], 8).model_copy(update={"action_value": 0.6}), node(0, [2], 8).model_copy(update={"action_value": 0.4})
    nodes = [node(None, [], 16), first, end(1, [3], True), end(1, [4], False), second, end(4, [3], False), end(4, [4], True)]
    found, _ = extract_pairs(search_tree("a", nodes), min_gap=0.1, min_visits=2)
    assert [locate_pair(nodes, pair) for pair in found] == [(0, 1, 4), (1, 2, 3), (4, 6, 5)]


def test_an_example_with_only_a_checker_shows_its_calls_as_a_response_would():
    calls = [ToolCall(name="f", arguments={"a": True, "b": "x"}), ToolCall(name="g")]
    example = fake_example(0).model_copy(update={"response": None, "calls": calls})
    tree = search_tree(example.id, [node(None, [])])
    explorer = build_explorer(ReportInputs(config=fake_config(), trees={1: [tree]}, examples={example.id: example}))
    assert explorer.examples[example.id].answer == '[f(a=true, b="x"), g()]'


def test_a_large_tree_keeps_its_most_visited_nodes_with_their_ancestors():
    nodes = [node(None, [], 100), node(0, [1], 60), node(0, [2], 39), node(1, [3], 50), node(2, [4], 1), node(4, [5], 1)]
    assert most_visited(nodes, set(), limit=3) == [0, 1, 3]
    assert most_visited(nodes, {5}, limit=4) == [0, 2, 4, 5]
