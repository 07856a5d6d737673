"""The mathematics of diffusion: schedule, prediction, loss, guidance, solvers. No network inside.

x_t = alpha_t x_0 + sigma_t eps. Most schedules preserve variance, alpha^2 + sigma^2 = 1, and "flow"
does not: nothing but the schedule itself may count on it. Timestep 0 is nearly clean, T - 1 is
noise, and -1 is the clean end of a sampler (alpha 1, sigma 0).
"""
