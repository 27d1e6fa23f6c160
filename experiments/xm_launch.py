"""Launches the jobs of a sweep with XManager: here, or as containers on Vertex AI or Kubernetes.

  python experiments/xm_launch.py --gin_file=experiments/sweeps/quickstart_seeds.gin --processes=2

The jobs are those of `instructretro sweep` with the same files and root; run later, that goes on
with what was launched from here, and compares. The stages that jobs share are a job of their own,
first and alone; the others start when it has succeeded, and link what it has made. A job that has
failed, or whose machine was taken away (status 75), is started again by launching again: those that
are done end at once. Overrides for all jobs, --gin.NAME=VALUE, stand behind `--`.

Elsewhere, every job is one machine that sees the root, and runs an image (docs/pods.md makes it):

  python experiments/xm_launch.py --gin_file=FILE --root=gs://BUCKET/sweep --platform=vertex \
    --image=gcr.io/PROJECT/instructretro:1 --resources=a100=8

Tried are local jobs alone, and of the others what Vertex AI and Kubernetes would be asked. XManager
waits without end for a job of Kubernetes that has failed: watch the one named shared.
"""

import asyncio
import re
import sys

from absl import app, flags
import click
from xmanager import xm, xm_local

from instructretro_jax.commands import sweeping
from instructretro_jax.commands.paths import FOLDER
from instructretro_jax.commands.run import gin_bindings
from instructretro_jax.pipeline import quiet
from instructretro_jax.pipeline.manifest import StageError
from instructretro_jax.pipeline.sweep import Job

_EXECUTORS = {
  'local': xm_local.Local, 'vertex': xm_local.Vertex, 'kubernetes': xm_local.Kubernetes
}  # fmt: skip
_GIN_FILES = flags.DEFINE_multi_string('gin_file', [], 'Sweep, as for instructretro sweep.')
_ROOT = flags.DEFINE_string('root', 'runs/sweep', 'Its folder, which every job must see.')
_PLATFORM = flags.DEFINE_enum('platform', 'local', list(_EXECUTORS), 'Where jobs run.')
_IMAGE = flags.DEFINE_string('image', None, 'Image of the containers; its command: instructretro.')
_RESOURCES = flags.DEFINE_list('resources', [], 'Of a job, as xm.JobRequirements: a100=8,cpu=16')
_PROCESSES = flags.DEFINE_integer('processes', None, 'Jobs at a time; all if not given.', 1)

# what XManager can ask for; on Kubernetes it sets an annotation that today's GKE does not read
_TPUS = {'vertex': (xm.ResourceType.TPU_V2, xm.ResourceType.TPU_V3), 'kubernetes': ()}


def executor(platform: str, resources: list[str]) -> xm.Executor:
  """Where a job runs and on what. Raises StageError for what XManager cannot ask for."""
  if platform == 'local' and resources:
    raise StageError(f'{resources}: jobs on this machine take what it has; leave out --resources')
  try:
    requirements = xm.JobRequirements(**dict(one.split('=') for one in resources))
  except (ValueError, TypeError, KeyError) as error:
    raise StageError(f'--resources={",".join(resources)}: {error}') from error
  if (kind := requirements.accelerator) in xm.TpuType and kind not in _TPUS[platform]:
    raise StageError(f'XManager asks {platform} for no {kind}: start jobs as docs/pods.md says')
  return _EXECUTORS[platform](requirements=requirements)


def packageable(platform: str, image: str | None) -> xm.Packageable:
  """What all jobs run: this Python, or the image. Raises StageError if that is not given."""
  if platform == 'local':
    binary = xm.Binary(path=sys.executable)
    return xm.Packageable(binary, xm_local.Local.Spec(), args=['-m', 'instructretro_jax'])
  if image is None:
    raise StageError(f'--platform={platform} runs containers: give --image, see docs/pods.md')
  return xm.Packageable(xm.Container(image_path=image), _EXECUTORS[platform].Spec())


def xm_job(job: Job, executable: xm.Executable, where: xm.Executor) -> xm.Job:
  """A job of the sweep as XManager's; the name is one that Kubernetes takes for a host."""
  name = re.sub('[^a-z0-9]+', '-', job.name.lower())[:40].strip('-')
  return xm.Job(executable, where, name=name, args=list(job.command()[1:]))


async def launch(prepared: sweeping.Prepared, what: xm.Packageable, where: xm.Executor) -> None:
  """Runs what jobs share, then all jobs. Raises StageError that names those which failed."""
  async with xm_local.create_experiment(prepared.root.name) as experiment:
    [executable] = experiment.package([what])
    slots = asyncio.Semaphore(_PROCESSES.value or len(prepared.jobs))

    async def run(job: Job) -> str | None:
      async with slots:
        unit = await experiment.add(xm_job(job, executable, where))
        try:
          await unit.wait_until_complete()
        except xm.ExperimentUnitError as error:
          return f'{job.name} failed: {error}'

    for jobs in (filter(None, [prepared.shared]), prepared.jobs):
      if failed := list(filter(None, await asyncio.gather(*map(run, jobs)))):
        raise StageError('; '.join(failed))


@xm.run_in_asyncio_loop
async def main(argv: list[str]) -> None:
  quiet.quieten()
  try:
    root = FOLDER.convert(_ROOT.value, None, None)
    prepared = sweeping.prepare(_GIN_FILES.value, gin_bindings(argv[1:]), root)
    where = executor(_PLATFORM.value, _RESOURCES.value)
    await launch(prepared, packageable(_PLATFORM.value, _IMAGE.value), where)
  except (StageError, click.ClickException) as error:
    sys.exit(f'error: {error}')


if __name__ == '__main__':
  app.run(main)
