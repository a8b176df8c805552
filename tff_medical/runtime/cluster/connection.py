def connect(address):
  import ray
  if not ray.is_initialized():
    ray.init(address=address, log_to_driver=False, logging_level='ERROR')
  return ray
