"""What tests share. One module for each question:

- models: what is trained? `Tiny` with dropout, `Plain` without anything random; their data; `quiet`, a silent trainer.
- compare: are two results the same? `same` bit for bit, `close` to 1e-6; `weights` and `saved` give what is compared.
- rows: what has a run measured, and what does it say of itself?
- resumable: what must a resume restore? A training with all of it, and what is left of it in the end.
- clock: what time is it? The one that a test says.
- batches: what do batches say of themselves? Those of a loader, with names for their parts.
- tracebacks: what stands in the traceback of an error?
- right_programs, planted: what may the audit find? Programs without an error, and with one each.
- replayed: what was each step? A training that leaves a digest after every one.
- sharded: what does a rank hold of a network? One of blocks that notes how many are gathered while it runs.
- optimizers: what may the states of an optimizer be? One class for each kind.
- shards: what does a random training end with that is cut and resumed by other ranks under another strategy?
- troubled: what if a rank fails? A model whose rank 1 fails on request: killed, terminated, or by an exception.
- faulty: what if one bit is wrong, once? A model with a fault at the place that is asked for.
- attacked: what if a rank fails anywhere? Every method of a user's program, and every kind of trouble.
- scripts: how does a program run in a process of its own, without importing PyTorch once more?
- processes: how is a training started, watched and killed from outside?
- damage: what may happen to the files of a run folder, and what must a run then do?
- emulated: what does the trainer do on an accelerator? A second device for a PyTorch without a GPU.
- fuzzing: what does a random training, cut at random places, end with? Cases are functions of a seed and a number.
- pages: what does the program of a page print, and is it what the page shows?
- editor: what does an editor show at a place in a program?
- scenarios: how do several ranks run a function that stands above its test?

Programs stand beside this folder, thin layers over it: longrun.py and launched.py train `resumable` and `troubled` in a
process of their own; hybrid.py trains `sharded` as one process of two machines; kill.py kills longrun.py again and
again; on_emulated_device.py has the tests that run on the device of `emulated`; fuzz_files.py damages run folders and
resumes them; fuzz.py cuts and resumes random trainings of `fuzzing`; shards.py compares those of `shards` with one
process; attack.py does all that `attacked` can; replays.py replays steps of `replayed`; mutations.py breaks the package
to see tests fail.
"""
