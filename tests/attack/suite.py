"""Cases, and the running of them.

A case is an attack and the guards that cover it. It is run with all of them, which must refuse it; where there are several,
with each one alone taken away, which must still refuse it; and, as the control, with all of them taken away, when the
attack must succeed: else the case could not fail. Cases that need the same guards away share that state.
"""

import concurrent.futures
import contextlib
import dataclasses
import sys
import time
import traceback

import lab as labs
from guards import HostGuard, MachineGuard, ProxyRule

CASES = []
CONTROL_FAILED = "the control failed"


@dataclasses.dataclass(eq=False)
class Case:
    kind: str  # the class: the name of its file
    name: str
    guards: tuple
    attack: callable  # lab -> whether the attack succeeded
    control: callable = None  # instead of the attack in the control
    serial: bool = False  # nothing else may run beside it
    card: dict = dataclasses.field(default_factory=dict)  # what the attacker's card says otherwise
    seconds: float = 0
    failures: list = dataclasses.field(default_factory=list)
    control_succeeded: bool = False

    @property
    def refused(self):
        return not any(failure != CONTROL_FAILED for failure in self.failures)

    def states(self):
        """The sets of guards to take away: none, each alone, all."""
        everything = frozenset(self.guards)
        return [frozenset(), *([frozenset([guard]) for guard in self.guards] if len(self.guards) > 1 else []), everything]

    def result(self):
        return {"class": self.kind, "case": self.name, "guard": " + ".join(map(str, self.guards)), "refused": self.refused,
                "control_succeeded": self.control_succeeded, "seconds": round(self.seconds, 2)}


def case(name, *guards, **options):
    """Decorates the attack: a function of the lab that says whether it succeeded. The class is its file's name."""
    def add(attack):
        kind = sys._getframe(1).f_globals["__name__"]
        if any(known.name == name and known.kind == kind for known in CASES):
            raise ValueError(f"two cases are called {kind}: {name}")
        CASES.append(Case(kind, name, guards, attack, **options))
        return attack
    return add


def rules_of(away):
    return sorted((guard for guard in away if isinstance(guard, ProxyRule)), key=str)


@contextlib.contextmanager
def without(lab, away, card):
    """Takes these guards away, and puts them back. The attacker is one whose own guards of them are away."""
    own = [guard for guard in away if isinstance(guard, MachineGuard)]
    outside = any(guard.standin or guard.host for guard in own)
    # To whoever is not in it, what a machine is guarded by is nothing.
    attacker = base = lab.machine(card, () if outside else own)
    if any(guard.host for guard in own):
        attacker = lab.host
    elif outside:
        # Of the machine's guards, those with properties can be kept.
        import guards
        known = [guard for guard in vars(guards).values() if isinstance(guard, MachineGuard)]
        attacker = labs.StandIn(base, [guard for guard in known if guard not in away])
    with contextlib.ExitStack() as stack:
        before = lab.attacker
        stack.callback(setattr, lab, "attacker", before)
        lab.attacker = attacker
        # Left as it is afterwards: the next state says what it needs, and a restart takes seconds.
        lab.edit_squid([edit for guard in rules_of(away) for edit in guard.edits])
        for guard in away:
            if isinstance(guard, HostGuard):
                stack.enter_context(guard.away(lab))
        if attacker is not base:
            stack.callback(attacker.stop_server)
        yield


def attempt(lab, case, away, say):
    """One attack in one state."""
    control = bool(case.guards) and away == frozenset(case.guards)
    start = time.monotonic()
    labs.waiting.factor = 6 if control else 1
    try:
        attack = case.control if control and case.control else case.attack
        succeeded = bool(attack(lab))
        if control and not succeeded:
            # It shows that the attack can work. What a proxy that was started a moment ago did not take, it takes now.
            lab.pause(2)
            succeeded = bool(attack(lab))
        error = ""
    except Exception:  # noqa: BLE001  a case that is broken must not take the others along
        succeeded, error = None, traceback.format_exc(chain=False)
    case.seconds += time.monotonic() - start
    where = "without " + " and ".join(sorted(map(str, away))) if away else "with all guards"
    if error:
        failure = f"{where}: the case is broken: {error.strip()}"
    elif control:
        case.control_succeeded = succeeded
        failure = "" if succeeded else CONTROL_FAILED
    else:
        failure = f"{where}: the attack succeeded" if succeeded else ""
    if failure:
        case.failures.append(failure)
        say(f"{case.kind}: {case.name}: {failure}".replace("\n", "\n# "))


def run(lab, cases, say=lambda text: None):
    """Runs the cases, those that share a state together."""
    groups = {}
    for one in cases:
        for state in one.states():
            groups.setdefault((state, str(one.card)), []).append(one)
    # With the same rules of the proxy next to each other; nothing away comes first.
    order = lambda item: (list(map(str, rules_of(item[0][0]))), len(item[0][0]), sorted(map(str, item[0][0])), item[0][1])
    for (state, _), members in sorted(groups.items(), key=order):
        start = time.monotonic()
        with without(lab, state, members[0].card):
            with concurrent.futures.ThreadPoolExecutor(8) as pool:
                list(pool.map(lambda one: attempt(lab, one, state, say), [one for one in members if not one.serial]))
            for one in members:
                if one.serial:
                    attempt(lab, one, state, say)
        say(f"{len(members):3} without {', '.join(sorted(map(str, state))) or 'nothing'}: {time.monotonic() - start:.1f} s")
