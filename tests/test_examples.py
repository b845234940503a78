"""What the packages offer: all of it has an example in its docstring, which is run."""

import doctest
import inspect

import pytest

import dsn_kernels
import dsn_models
from dsn_models import errors, functional, gates, tensors
from dsn_models.training import overriding

PUBLIC = {
    f"{package.__name__}.{name}": getattr(package, name)
    for package in (dsn_kernels, dsn_models, functional)
    for name in getattr(package, "__all__", ("where_open", "choose_filters"))
    if callable(getattr(package, name))
}
OTHERS = {
    function.__name__: function
    for function in (errors.expected, gates.zeros_and_ones, tensors.hint, overriding.parse_setting)
}  # not of the packages' own names, with examples all the same


@pytest.mark.parametrize("name", [*PUBLIC, *OTHERS])
def test_the_example_of(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    subject = {**PUBLIC, **OTHERS}[name]
    scope = dict(vars(inspect.getmodule(subject)))
    (test, *_) = doctest.DocTestFinder(recurse=False).find(subject, name, globs=scope) or [None]
    assert test is not None and test.examples, f"{name} has no example"
    told = []
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    assert runner.run(test, out=told.append).failed == 0, "".join(told)
