"""Flow matching without chemistry: paths between distributions and the solvers that follow them."""
