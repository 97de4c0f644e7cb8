"""Which small changes of the code the tests catch: cosmic-ray's mutants of the modules that results hang on.

    pip install cosmic-ray
    git clone . /tmp/copy && cd /tmp/copy
    python benchmarks/mutation.py --session /tmp/mutants.sqlite --each 80

Run it in a copy: the files are changed where they stand, one mutant at a time. A session that was stopped goes on; a
finished one prints its table and the survivors again, and with --again it tests the survivors anew.

Of cosmic-ray's operators those that swap an operator for its usual opposite are taken, and of the mutants those that
parse and differ by more than annotations or the marks `*` and `/` among arguments. Tests start in a fork of a process
that has imported the libraries, and the first test that fails ends them.
"""

import argparse
import ast
import collections
import os
import random
import re
import signal
import sys
import time
from pathlib import Path

import cosmic_ray.commands
import cosmic_ray.plugins
from cosmic_ray.mutating import mutate_code
from cosmic_ray.work_db import use_db
from cosmic_ray.work_item import TestOutcome, WorkerOutcome, WorkResult

ROOT = Path(__file__).resolve().parent.parent
ON_EMBEDDINGS = '-k=sgd or lbfgs or gradient or path or rises or choose or natural'
# Module -> (functions, or None for all; arguments of pytest, those of the cheapest tests first).
MODULES = {
    'fixres_jax/adaptation/adapt.py': (None, [['tests/test_adapt.py', ON_EMBEDDINGS], ['tests/test_adapt.py']]),
    'fixres_jax/adaptation/statistics.py': (None, [['tests/test_adapt.py']]),
    'fixres_jax/adaptation/classifier.py': (None, [['tests/test_adapt.py', ON_EMBEDDINGS], ['tests/test_adapt.py']]),
    'fixres_jax/core/losses.py': (None, [['tests/test_metrics.py']]),
    'fixres_jax/evaluation/intervals.py': (None, [['tests/test_metrics.py']]),
    'fixres_jax/training/metrics_log.py': (None, [['tests/test_metrics.py']]),
    'fixres_jax/training/optimization.py': (('make_optimizer', 'count_steps', 'make_sgd'), [['tests/test_optim.py']]),
    'fixres_jax/training/schedules.py': (None, [['tests/test_optim.py']]),
    'fixres_jax/training/optimizers.py': (None, [['tests/test_optimizers.py']]),
    'fixres_jax/training/mixing.py': (None, [['tests/test_mixing.py']]),
    'fixres_jax/training/averaging.py': (None, [['tests/test_averaging.py']]),
    'fixres_jax/runs/phases.py': (
        ('sweep_phase', '_adapted_sweep', '_compared', '_adapted_in_sweep', 'choose_resolution', 'adapt_phase'),
        [['tests/test_phases.py']],
    ),
    'fixres_jax/data/sources.py': (None, [['tests/test_data_sources.py'], ['tests/test_data_tfds.py']]),
}
OPERATORS = re.compile(
    'core/(NumberReplacer|AddNot|Replace(True|False|And|Or|Break|Continue)With.*|RemoveDecorator|ExceptionReplacer|'
    'ZeroIterationForLoop|ReplaceUnaryOperator_Delete_.*|ReplaceUnaryOperator_USub_UAdd|'
    'ReplaceBinaryOperator_(Add_Sub|Sub_Add|Mul_Div|Div_Mul|FloorDiv_Div|Mod_Mul|Pow_Mul|BitOr_BitAnd|BitAnd_BitOr)|'
    'ReplaceComparisonOperator_(Lt_(LtE|GtE)|LtE_(Lt|Gt)|Gt_(GtE|LtE)|GtE_(Gt|Lt)|Eq_NotEq|NotEq_Eq|Is_IsNot|IsNot_Is))'
)
ENVIRONMENT = {
    'JAX_PLATFORMS': 'cpu',
    'JAX_COMPILATION_CACHE_DIR': str(ROOT / '.mutation_cache'),
    'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
    'JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES': '-1',
    'OPENBLAS_NUM_THREADS': '1',
}


def shape(code):
    """Return what a program does as text: its syntax tree, without annotations and without the marks `*` and `/` among
    the arguments of functions, which cosmic-ray takes for operators; None if it does not parse.
    """
    try:
        tree = ast.parse(code)
    except SyntaxError:
        return None
    for node in ast.walk(tree):
        for field in ('annotation', 'returns'):
            if getattr(node, field, None) is not None:
                setattr(node, field, ast.Constant(None))
        if isinstance(node, ast.arguments):
            node.args = [*node.posonlyargs, *node.args, *node.kwonlyargs]
            node.defaults = [value for value in (*node.defaults, *node.kw_defaults) if value]
            node.posonlyargs, node.kwonlyargs, node.kw_defaults = [], [], []
    return ast.dump(tree)


def mutate(mutation):
    """Return the text of a mutated module."""
    operator = cosmic_ray.plugins.get_operator(mutation.operator_name)(**mutation.operator_args)
    return mutate_code(mutation.module_path.read_text(), operator, mutation.occurrence)


def choose(db, each, seed):
    """Fill a session with at most `each` mutants a module, drawn at random; print how many there were."""
    cosmic_ray.commands.init([Path(name) for name in MODULES], db, {})
    found = collections.defaultdict(dict)
    for item in db.work_items:
        (mutation,) = item.mutations
        functions, _ = MODULES[str(mutation.module_path)]
        if OPERATORS.fullmatch(mutation.operator_name) and (not functions or mutation.definition_name in functions):
            after = shape(mutate(mutation))
            if after not in (None, shape(mutation.module_path.read_text())):
                found[str(mutation.module_path)].setdefault(after, item)  # two operators may make the same mutant
    db.clear()
    rng = random.Random(seed)
    for name, items in found.items():
        items = [items[key] for key in sorted(items)]
        print(f'{name}: {len(items)} mutants, {min(each, len(items))} drawn')
        db.add_work_items(rng.sample(items, min(each, len(items))))


def run(arguments, timeout, output):
    """Run pytest in a fork; return its exit code, or None after a timeout."""
    child = os.fork()
    if not child:
        os.setsid()
        file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, 1)
        os.dup2(file, 2)
        code = 99
        try:
            import pytest

            code = int(pytest.main(['-x', '-q', '-p', 'no:cacheprovider', '--tb=line', *arguments]))
        finally:
            os._exit(code)
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.02)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None


def test(name, timeout):
    """Return the outcome of a module's tests, and what they said."""
    output = ROOT / '.mutation_output'
    for arguments in MODULES[name][1]:
        code = run(arguments, timeout, output)
        if code:
            return TestOutcome.KILLED, output.read_text()[-2000:]
        if code is None:
            return TestOutcome.KILLED, 'timeout'
    return TestOutcome.SURVIVED, ''


def examine(db, item, timeout):
    """Test one mutant and keep its outcome."""
    (mutation,) = item.mutations
    path, original = mutation.module_path, mutation.module_path.read_text()
    mutant = mutate(mutation)
    number = mutation.start_pos[0]
    line = original.splitlines()[number - 1].strip()
    try:
        path.write_text(mutant)
        outcome, said = test(str(path), timeout)
    finally:
        path.write_text(original)
    changed = [new for old, new in zip(original.splitlines(), mutant.splitlines(), strict=False) if old != new][:1]
    diff = f'{path}:{number} {mutation.operator_name}\n-    {line}\n+    {"".join(changed).strip()}'
    db.set_result(item.job_id, WorkResult(WorkerOutcome.NORMAL, said, outcome, diff))
    print(time.strftime('%H:%M:%S'), outcome.value, diff if outcome == TestOutcome.SURVIVED else diff.split('\n')[0])
    sys.stdout.flush()


def report(db):
    """Print the table of a session, and its survivors."""
    outcomes = {job: result for job, result in db.results}
    rows, survivors = collections.defaultdict(collections.Counter), []
    for item in db.work_items:
        name, result = str(item.mutations[0].module_path), outcomes.get(item.job_id)
        what = 'open' if result is None else 'timeout' if result.output == 'timeout' else result.test_outcome.value
        rows[name][what] += 1
        survivors += [result.diff] if what == 'survived' else []
    for name, row in rows.items():
        print(name, dict(row))
    print(*sorted(survivors), sep='\n\n')


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--session', required=True, help='sqlite file of the mutants and their outcomes')
    parser.add_argument('--each', type=int, default=80, help='mutants of a module, at most')
    parser.add_argument('--seed', type=int, default=0, help='of the draw')
    parser.add_argument('--timeout', type=float, default=120, help='seconds for the tests of a mutant')
    parser.add_argument('--only', default='', help='part of a module name')
    parser.add_argument('--again', action='store_true', help='test the survivors again, after a change of the tests')
    arguments = parser.parse_args()
    os.chdir(ROOT)
    os.environ.update(ENVIRONMENT)
    sys.dont_write_bytecode = True  # two mutants of one second and one length would share their bytecode
    sys.path[:0] = [str(ROOT)]
    fresh = not Path(arguments.session).exists()
    with use_db(arguments.session) as db:
        if fresh:
            choose(db, arguments.each, arguments.seed)
        import grain, jax.numpy, numba, optax, orbax.checkpoint, pytest, scipy.optimize, scipy.stats, tensorboardX  # noqa

        done = {job for job, result in db.results if result.test_outcome != TestOutcome.SURVIVED or not arguments.again}
        pending = [item for item in db.work_items if item.job_id not in done]
        pending = [item for item in pending if arguments.only in str(item.mutations[0].module_path)]
        for name in {str(item.mutations[0].module_path) for item in pending}:
            began = time.monotonic()
            outcome, said = test(name, 600)
            assert outcome == TestOutcome.SURVIVED, f'The tests of {name} fail without a mutant: {said}'
            print(f'{name}: its tests take {time.monotonic() - began:.1f} s')
        random.Random(arguments.seed).shuffle(pending)
        for item in pending:
            examine(db, item, arguments.timeout)
        report(db)


if __name__ == '__main__':
    main()
