%% SPDX-License-Identifier: Apache-2.0
%% Plants events of the distribution in one of two nodes on loopback. Both run this module; commands
%% go to the one that is watched, the other holds the sink for its messages.
%%
%%   connect NODE   connects; done connect 1
%%   remote N       N messages to the sink, one back when it has them all; done remote N
%%   back N         N messages from the sink, one to it that asks for them; done back N
%%   drops N        N times a connection that is disconnected and made again; done drops N
%%   fill           messages of 64 KiB until the distribution port is busy, suspending no process; done fill
%%                  COUNT. It ends only if the peer does not read, so stop that one first (SIGSTOP).
%%   block K        K processes send to the peer and are suspended: the line "suspended K", and
%%                  "done block K" when all have sent after all (SIGCONT). The line is "passed" if
%%                  one was not: then what is sent found room after all, and fill is to come again.
%%   flood NODE async|sync N   a process sends N messages of 100 kB to the node, which does not take them;
%%                  "done flood suspended", or waiting when all are sent
%%   links      what the node itself knows of each link: a line of peers, with commas between them
%%   tell NODE N    N messages to the name any of a node that is no BEAM; done tell N
%%   ticks N    N ticks for each link, as net_kernel sends them; done ticks N
%%   watch      the node is to report lost connections and suspended senders; done watch
%%   busy N     the first N processes that were suspended, as system_monitor names them: "busy PID PID"
%%   gone       the next lost connection, as net_kernel reports it: "gone NODE REASON"
%%   cut NODE   disconnects; done cut
%%   many N PREFIX   connects to n1@PREFIX.0.1 and so on, 250 to a network; done many N
-module(dist).
-export([start/0, main/0, sink/0, blocked_sender/2, flood/3]).

%% For erl -s dist.
start() -> spawn(?MODULE, main, []).

main() ->
    register(dist_sink, spawn(?MODULE, sink, [])),
    control:serve(fun(_Control) -> ok end, fun command/2).

sink() ->
    receive
        {last, From} -> From ! received;
        {back, From, N} -> [From ! {back, I} || I <- lists:seq(1, N)];
        From when is_pid(From) -> From ! received;
        _ -> ok
    end,
    sink().

command(_Control, ["connect", Name]) ->
    Node = list_to_atom(Name),
    true = net_kernel:connect_node(Node),
    remote(Node, 1), % code for both directions is loaded
    "done connect 1";
command(_Control, ["remote", N]) ->
    remote(peer(), list_to_integer(N)),
    ["done remote ", N];
command(_Control, ["back", N]) ->
    Count = list_to_integer(N),
    {dist_sink, peer()} ! {back, self(), Count},
    [receive {back, I} -> ok end || I <- lists:seq(1, Count)],
    ["done back ", N];
command(_Control, ["drops", N]) ->
    Node = peer(),
    ok = net_kernel:monitor_nodes(true),
    [dropped(Node) || _ <- lists:seq(1, list_to_integer(N))],
    ok = net_kernel:monitor_nodes(false),
    ["done drops ", N];
command(_Control, ["fill"]) ->
    ["done fill ", integer_to_list(fill({dist_sink, peer()}, <<0:(8 * 65536)>>, 0))];
command(Control, ["block", K]) ->
    Sent = atomics:new(1, []),
    Senders = [spawn(?MODULE, blocked_sender, [{dist_sink, peer()}, Sent])
               || _ <- lists:seq(1, list_to_integer(K))],
    control:say(Control, case lists:all(fun suspended/1, Senders) of
        true -> ["suspended ", K];
        false -> "passed"
    end),
    until(fun() -> atomics:get(Sent, 1) =:= length(Senders) end),
    ["done block ", K];
command(_Control, ["flood", Node, Async, N]) ->
    To = list_to_atom(Node),
    Flood = spawn(?MODULE, flood, [To, Async =:= "async", list_to_integer(N)]),
    Settled = [{status, suspended}, {status, waiting}],
    until(fun() -> lists:member(process_info(Flood, status), Settled) end),
    {status, Status} = process_info(Flood, status),
    ["done flood ", atom_to_list(Status)];
command(_Control, ["links"]) ->
    Known = [known(Conn) || Conn <- ets:tab2list(sys_dist), element(1, Conn) =:= connection],
    lists:join($,, [Line || Line <- Known, Line =/= none]);
command(_Control, ["tell", Node, N]) ->
    To = {any, list_to_atom(Node)},
    [To ! I || I <- lists:seq(1, list_to_integer(N))],
    ["done tell ", N];
command(_Control, ["ticks", N]) ->
    [ticked(Port, list_to_integer(N)) || {_, Port} <- erlang:system_info(dist_ctrl)],
    ["done ticks ", N];
command(_Control, ["watch"]) ->
    ok = net_kernel:monitor_nodes(true, [nodedown_reason, {node_type, all}]),
    erlang:system_monitor(self(), [busy_dist_port]),
    "done watch";
command(_Control, ["busy", N]) ->
    ["busy", [[$ , pid_to_list(Pid)] || Pid <- busy(list_to_integer(N), [])]];
command(_Control, ["gone"]) ->
    receive
        {nodedown, Node, Info} ->
            {nodedown_reason, Reason} = lists:keyfind(nodedown_reason, 1, Info),
            io_lib:format("gone ~s ~s", [Node, Reason])
    end;
command(_Control, ["cut", Node]) ->
    true = erlang:disconnect_node(list_to_atom(Node)),
    "done cut";
command(_Control, ["many", N, Prefix]) ->
    Names = [io_lib:format("n~b@~s.~b.~b", [I, Prefix, I div 250, I rem 250 + 1])
             || I <- lists:seq(1, list_to_integer(N))],
    [true = net_kernel:connect_node(list_to_atom(lists:flatten(Name))) || Name <- Names],
    ["done many ", N].

busy(0, Found) -> Found;
busy(N, Found) ->
    receive
        {monitor, Pid, busy_dist_port, _} ->
            case lists:member(Pid, Found) of
                true -> busy(N, Found);
                false -> busy(N - 1, [Pid | Found])
            end
    end.

%% NODE recv_oct recv_cnt send_oct send_cnt in out pending, of inet:getstat and dist_get_stat.
known(Conn) ->
    Node = element(2, Conn),
    case lists:keyfind(Node, 1, erlang:system_info(dist_ctrl)) of
        {Node, Port} when is_port(Port) ->
            {ok, Stats} = inet:getstat(Port, [recv_oct, recv_cnt, send_oct, send_cnt]),
            {ok, In, Out, Pending} = erlang:dist_get_stat(element(3, Conn)),
            Figures = [Value || {_, Value} <- Stats] ++ [In, Out],
            io_lib:format("~s~s ~p", [Node, [[$ , integer_to_list(I)] || I <- Figures], Pending]);
        _ -> none
    end.

%% The process of a link answers when it has taken all that was sent to it before.
ticked(Port, N) ->
    {connected, Pid} = erlang:port_info(Port, connected),
    [Pid ! {whereis(net_kernel), tick} || _ <- lists:seq(1, N)],
    Pid ! {self(), get_status},
    receive {Pid, get_status, _} -> ok end.

%% Sends to who is being connected, or does not read; no process waits for it.
flood(Node, Async, N) ->
    Async andalso process_flag(async_dist, true),
    Data = binary:copy(<<0>>, 100000),
    [{dist_sink, Node} ! Data || _ <- lists:seq(1, N)],
    receive never -> ok end.

dropped(Node) ->
    true = erlang:disconnect_node(Node),
    receive {nodedown, Node} -> ok end,
    true = net_kernel:connect_node(Node),
    receive {nodeup, Node} -> ok end.

peer() ->
    [Node] = nodes(connected),
    Node.

remote(Node, N) ->
    To = {dist_sink, Node},
    [To ! I || I <- lists:seq(2, N)],
    To ! {last, self()},
    receive received -> ok end.

%% The port is also busy for a moment while its queue waits for a scheduler: that passes.
fill(To, Message, Sent) ->
    case sent(To, Message, 100) of
        true -> fill(To, Message, Sent + 1);
        false -> Sent
    end.

sent(_To, _Message, 0) -> false;
sent(To, Message, Attempts) ->
    case erlang:send(To, Message, [nosuspend, noconnect]) of
        ok -> true;
        nosuspend -> receive after 1 -> sent(To, Message, Attempts - 1) end
    end.

blocked_sender(To, Sent) ->
    To ! planted,
    atomics:add(Sent, 1, 1).

%% Waits for it; false if the process has ended instead.
suspended(Process) ->
    case process_info(Process, status) of
        {status, suspended} -> true;
        undefined -> false;
        _ -> receive after 1 -> suspended(Process) end
    end.

until(Holds) ->
    case Holds() of
        true -> ok;
        false -> receive after 1 -> until(Holds) end
    end.
