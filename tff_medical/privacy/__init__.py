"""The truth about the guarantee: mechanisms, accounting, calibration, ledger.

A frozen mechanism says what is clipped, what noise is added, how clients are
drawn, what the privacy unit and the neighbouring relation are. From it come
the sampler that runs, the event that is accounted for and the TFF aggregator,
so that none of them can disagree. All but `noise`, `clipping`, the `*_query`
modules and `aggregators`, which carry a mechanism out, is plain NumPy.
"""
