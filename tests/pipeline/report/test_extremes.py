"""Figure 5's rule: the largest gains and losses, the lower image id among equals, nothing by hand."""

from pipeline.report.extremes import extremes, surest


def test_largest_changes_first_and_the_lower_id_among_equals():
    before = {"10": 0.2, "9": 0.2, "3": 0.5, "4": 0.9, "5": 0.6, "6": 0.6, "7": None, "8": 0.4}
    after = {"10": 0.5, "9": 0.5, "3": 0.6, "4": 0.1, "5": 0.4, "6": 0.4, "7": None, "8": 0.4}
    gained, lost = extremes(before, after, number=2)
    assert gained == [(9, 0.2, 0.5), (10, 0.2, 0.5)]
    assert lost == [(4, 0.9, 0.1), (5, 0.6, 0.4)]


def test_what_gained_is_not_shown_among_the_losses_and_a_missing_image_is_nowhere():
    gained, lost = extremes({"1": 0.1, "2": 0.5, "3": 0.3}, {"1": 0.2, "2": 0.5})
    assert (gained, lost) == ([(1, 0.1, 0.2)], [])


def test_drawn_are_the_surest_as_many_as_there_are_instances_whatever_they_score():
    results = [{"image_id": image, "score": score} for image in (1, 2) for score in (0.1, 0.3, 0.2, 0.3)]
    annotations = [{"iscrowd": 0}, {}, {"iscrowd": 1}, {"iscrowd": 0}]
    assert surest(results, 2, annotations) == [{"image_id": 2, "score": s} for s in (0.3, 0.3, 0.2)]
    assert surest(results, 3, annotations) == surest(results, 1, []) == []
