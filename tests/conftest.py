import os
import time
import uuid

# Of all processes that tests start; before the first of them, since those of a fork server show what it began with.
os.environ["TEST_MARK"] = uuid.uuid4().hex

started = time.monotonic()
import torch  # noqa: E402

# Limits, which are for hangs only, are longer where everything is.
os.environ["TEST_IMPORT_SECONDS"] = str(time.monotonic() - started)

# Networks this small only wait for their threads, here and in the programs that tests start.
os.environ["OMP_NUM_THREADS"] = "1"
torch.set_num_threads(1)
