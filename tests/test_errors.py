from fixres_jax.core.errors import RunError, UsageError, nearest


def test_nearest_names_what_is_like_the_word_and_nothing_else():
    assert nearest('resnet05', ['resnet18', 'resnet50', 'pnasnet5large']) == " Did you mean 'resnet50'?"
    assert nearest('zzz', ['resnet18', 'resnet50']) == ''
    assert nearest('x', []) == ''


def test_the_two_errors_are_caught_apart():
    assert not issubclass(UsageError, RunError) and not issubclass(RunError, UsageError)
    assert issubclass(UsageError, ValueError) and issubclass(RunError, RuntimeError)
