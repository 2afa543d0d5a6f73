"""Where recorded play comes from: a data directory, else random play collected on the emulator (its ROMs ship with ale-py)."""

import logging
import os
from pathlib import Path

from ml_collections import ConfigDict

from sgi.atari.emulator import display_name, num_actions
from sgi.recordings.dqn_replay import Store
from sgi.recordings.open import open_play, parse_shards
from sgi.recordings.record import Recording, record
from training.errors import UserError

log = logging.getLogger(__name__)


def open_data(data: ConfigDict) -> Store:
    """The store that `config.data` asks for.

    dir     root of the DQN-Replay layout (a folder or gs://...) or of ArrayRecord files, 'tfds' or 'tfds:folder' for
            tensorflow-datasets (see `sgi.recordings.open`); '' means $QUINTET_DATA/dqn if the game is there and `shards` names
            some of it, else `collect` steps of `policy` ('random' or 'cells': `sgi.recordings.record`), recorded once under
            ~/.cache/quintet
    game    'Boxing', 'boxing'
    shards  'all', or run/checkpoint pairs: '1/1,1/25,1/50'
    cache   folder of the decoded or converted frames; '' means ~/.cache/quintet/frames
    """
    root, actions = data.dir or str(_default(data)), num_actions(data.game, full=data.full_action_space)
    shards = parse_shards(data.shards, "config.data.shards")
    store = open_play(root, data.game, shards, cache=data.cache or None)
    if store.actions.max(initial=0) >= actions:
        raise UserError(
            f"{root} has action {store.actions.max()}, but {data.game} has {actions}: set config.data.full_action_space"
        )
    return store


def _default(data: ConfigDict) -> Path:
    shared = os.environ.get("QUINTET_DATA")
    if shared and data.shards != "all" and (Path(shared) / "dqn" / display_name(data.game)).is_dir():
        log.info("no data directory: using $QUINTET_DATA/dqn")
        return Path(shared) / "dqn"
    home = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "quintet" / data.policy
    home /= f"{data.collect}-steps" + "-full" * data.full_action_space
    log.info("no data directory: using %d steps of %s (%s) in %s", data.collect, data.game, data.policy, home)
    # `record` leaves a finished recording as it is, so this plays once.
    record(Recording(data.game, data.collect, data.policy, full_actions=data.full_action_space), home)
    return home
