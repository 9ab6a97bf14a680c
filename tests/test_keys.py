import torch

from medistill.keys import Key


def test_same_path_same_numbers():
    assert Key(3).child("step", 12) == Key(3).child("step").child("12")
    first, second = (torch.rand(4, generator=Key(3).child("a").generator()) for _ in range(2))
    assert torch.equal(first, second)


def test_paths_that_read_alike_differ():
    keys = [Key(0).child("a", "bc"), Key(0).child("ab", "c"), Key(0).child("abc"), Key(1).child("a", "bc"), Key(0)]
    assert len({key.integer() for key in keys}) == len(keys)


def test_integer_is_fixed_for_all_time():
    # Packages made by earlier versions must stay reproducible.
    assert Key(0).child("distil").integer() == 1788495013519579340


def test_global_state_is_neither_read_nor_written():
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = Key(5).generator().initial_seed()
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(2)
    assert Key(5).generator().initial_seed() == first
