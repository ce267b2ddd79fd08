# SPDX-License-Identifier: Apache-2.0
defmodule Shop.Application do
  # Listens on the port in SHOP_PORT and does what each line says; one line is the answer.
  use Application

  def start(_type, _args) do
    :persistent_term.put(:shop_calls, :counters.new(1, []))
    children = [Shop.Cart | Shop.Load.children()] ++ [{Task, &listen/0}]
    Supervisor.start_link(children, strategy: :one_for_one)
  end

  defp listen do
    port = String.to_integer(System.fetch_env!("SHOP_PORT"))
    options = [:binary, packet: :line, active: false, ip: {127, 0, 0, 1}, reuseaddr: true]
    {:ok, listener} = :gen_tcp.listen(port, options)
    {:ok, socket} = :gen_tcp.accept(listener)
    serve(socket)
  end

  defp serve(socket) do
    case :gen_tcp.recv(socket, 0) do
      {:ok, line} ->
        :ok = :gen_tcp.send(socket, "#{command(String.split(line))}\n")
        serve(socket)

      {:error, :closed} ->
        System.halt(0)
    end
  end

  defp command(["pid"]), do: System.pid()
  defp command(["cart"]), do: inspect(Process.whereis(Shop.Cart))

  defp command(["add", count]) do
    before = :counters.get(:persistent_term.get(:shop_calls), 1)
    for n <- 1..String.to_integer(count), do: GenServer.call(Shop.Cart, {:add, "pear", n})
    :counters.get(:persistent_term.get(:shop_calls), 1) - before
  end

  defp command(["load", count]), do: Shop.Load.run(String.to_integer(count))

  defp command(["upgrade", path]) do
    :code.purge(Shop.Cart)
    {:module, module} = :code.load_abs(String.to_charlist(path))
    inspect(module)
  end
end
