from ecos_jax.benchmark import machine


def test_children_get_all_cores_and_no_blas_overrides():
  base = {"OPENBLAS_CORETYPE": "Haswell", "OMP_NUM_THREADS": "1", "A": "b"}
  child = machine.environment(base)
  assert "OPENBLAS_CORETYPE" not in child
  assert child["OMP_NUM_THREADS"] == str(machine.cores())
  assert child["A"] == "b"
  devices = f"--xla_force_host_platform_device_count={machine.cores()}"
  assert devices in child["XLA_FLAGS"]
