%% SPDX-License-Identifier: Apache-2.0
%% A server and its callers, for captures: how many messages of each form there are is known.
%%
%%   calls N        N calls of one process, each answered; done calls N
%%   forever N      the same with an infinite timeout
%%   cast N         N casts, and then all of them are done
%%   late N         N calls whose callers have given up when the answer comes
%%   dead N         N calls of a server that exits instead of answering
%%   connect NODE   connects; done connect 1
%%   down NODE      disconnects; answers "down REASON", as net_kernel reports it
%%   large NODE N   N calls with a request of 1 MB, and the same back; answers "over US" as well
%%   over NODE N    N calls of the server on another node; answers "over US", the time of all
-module(rpc_calls).
-behaviour(gen_server).
-export([start/0, main/0]).
-export([init/1, handle_call/3, handle_cast/2]).

%% For erl -s rpc_calls.
start() -> spawn(?MODULE, main, []).

main() ->
    {ok, _} = gen_server:start({local, planted_server}, ?MODULE, [], []),
    control:serve(fun(_) -> ok end, fun command/2).

init(State) -> {ok, State}.

handle_call({sleep, Ms}, _From, State) ->
    timer:sleep(Ms),
    {reply, ok, State};
handle_call(die, _From, State) -> {stop, normal, State};
handle_call(Request, _From, State) -> {reply, Request, State}.

handle_cast(_, State) -> {noreply, State}.

command(_, ["calls", N]) ->
    [I = gen_server:call(planted_server, I) || I <- numbers(N)],
    ["done calls ", N];
command(_, ["forever", N]) ->
    [I = gen_server:call(planted_server, I, infinity) || I <- numbers(N)],
    ["done forever ", N];
command(_, ["cast", N]) ->
    [gen_server:cast(planted_server, I) || I <- numbers(N)],
    done = gen_server:call(planted_server, done),
    ["done cast ", N];
command(_, ["late", N]) ->
    [{'EXIT', {timeout, _}} = (catch gen_server:call(planted_server, {sleep, 20}, 1)) || _ <- numbers(N)],
    ok = gen_server:call(planted_server, {sleep, 0}),
    ["done late ", N];
command(_, ["dead", N]) ->
    [{'EXIT', _} = (catch gen_server:call(dying(), die)) || _ <- numbers(N)],
    ["done dead ", N];
command(_, ["connect", Node]) ->
    true = net_kernel:connect_node(list_to_atom(Node)),
    "done connect 1";
command(_, ["down", Name]) ->
    Node = list_to_atom(Name),
    ok = net_kernel:monitor_nodes(true, [nodedown_reason]),
    true = erlang:disconnect_node(Node),
    receive
        {nodedown, Node, [{nodedown_reason, Reason}]} -> ["down ", atom_to_list(Reason)]
    end;
command(Control, ["large", Node, N]) ->
    Large = binary:copy(<<7>>, 1000000),
    To = {planted_server, list_to_atom(Node)},
    [Large = gen_server:call(To, Large) || _ <- numbers(N)],
    command(Control, ["over", Node, "1"]);
command(_, ["over", Node, N]) ->
    To = {planted_server, list_to_atom(Node)},
    Before = erlang:monotonic_time(microsecond),
    [I = gen_server:call(To, I) || I <- numbers(N)],
    ["over ", integer_to_list(erlang:monotonic_time(microsecond) - Before)].

dying() ->
    {ok, Pid} = gen_server:start(?MODULE, [], []),
    Pid.

numbers(N) -> lists:seq(1, list_to_integer(N)).
